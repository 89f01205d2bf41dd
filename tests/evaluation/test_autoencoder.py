"""What a VAE keeps of images, against its own parts and scikit-image."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.evaluation.autoencoder import measure_autoencoder
from repae_jax.evaluation.image_sets import open_images
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.utils.images import to_uint8

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
MODULE = AutoencoderKL(
    channels=4, multipliers=(1, 1), latent_channels=2, num_res_blocks=1, groups=2,
    middle_attention=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    rng = np.random.default_rng(1)
    shapes = parameter_shapes(MODULE)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.3, s.shape), jnp.float32), shapes)
    return PretrainedVAE(MODULE, params)


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=IMAGES)
    return open_images(tmp_path / "images.npz")


def inception(images):
    """Stands for Inception: the pixels, repeated."""
    flat = jnp.asarray(images, jnp.float32).reshape(len(images), -1)
    return {"pool": jnp.concatenate([flat, flat, flat], axis=1)[:, :2048] / 100}


def distance(a, b):
    return jnp.abs(a - b).mean((1, 2, 3))


def test_figures_are_those_of_the_parts(vae, images):
    scores = measure_autoencoder(
        vae, images, make_mesh(), batch_size=3, features=inception, distance=distance
    )
    latents = vae.encode(IMAGES).mean
    decoded = np.asarray(vae.decode(latents))
    again = np.asarray(to_uint8(decoded))
    pairs = list(zip(IMAGES, again, strict=True))
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs])
    assert scores.psnr == pytest.approx(expected, rel=1e-4)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    expected = np.mean([structural_similarity(a, b, channel_axis=-1, **options) for a, b in pairs])
    assert scores.ssim == pytest.approx(expected, abs=1e-4)
    expected = np.abs(IMAGES / 127.5 - 1 - decoded.clip(-1, 1)).mean()
    assert scores.lpips == pytest.approx(expected, rel=1e-4)
    rows = [np.asarray(inception(x)["pool"], np.float64) for x in (IMAGES, again)]
    centred = [(x - x.mean(0)) / np.sqrt(6) for x in rows]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = np.square(rows[0].mean(0) - rows[1].mean(0)).sum()
    expected += sum(np.square(x).sum() for x in centred) - 2 * shared
    assert scores.rfid == pytest.approx(expected, rel=1e-3)
    latents = np.asarray(latents, np.float64)
    np.testing.assert_allclose(scores.latents.mean, latents.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.latents.std, latents.std((0, 1, 2)), rtol=1e-4)
    assert scores.latents.variance == pytest.approx(latents.var(), rel=1e-4)
    assert scores.count == 7


def test_without_networks_the_rest_is_measured(vae, images):
    scores = measure_autoencoder(vae, images.first(2), make_mesh(), batch_size=3)
    assert (scores.count, scores.rfid, scores.lpips) == (2, None, None)


def test_a_key_samples_the_posterior(vae, images):
    mean = measure_autoencoder(vae, images, make_mesh(), batch_size=7)
    key = jax.random.key(0)
    sampled = measure_autoencoder(vae, images, make_mesh(), batch_size=7, key=key)
    assert sampled.latents.variance > mean.latents.variance


def test_sides_that_the_factor_does_not_divide_are_said(vae, tmp_path):
    np.savez(tmp_path / "odd.npz", arr_0=IMAGES[:, :15, :15])
    with pytest.raises(UserError, match="factor 2 does not divide"):
        measure_autoencoder(vae, open_images(tmp_path / "odd.npz"), make_mesh(), batch_size=3)


@pytest.mark.parametrize(("side", "distance", "name"), [(8, None, "SSIM"), (14, distance, "LPIPS")])
def test_images_that_are_too_small_are_said(side, distance, name, vae, tmp_path):
    np.savez(tmp_path / "small.npz", arr_0=IMAGES[:, :side, :side])
    images = open_images(tmp_path / "small.npz")
    with pytest.raises(UserError, match=f"{side} x {side} pixels, {name} needs at least"):
        measure_autoencoder(vae, images, make_mesh(), batch_size=3, distance=distance)


def test_the_command(vae, images, tmp_path, capsys):
    vae.save_pretrained(tmp_path / "vae")
    words = ["evaluate-vae", str(tmp_path / "vae"), str(tmp_path / "images.npz"), "--quiet"]
    assert main([*words, "--output", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"{figures['psnr']:.2f} dB" in printed
    assert "its network was not given" in printed
    assert len(figures["latent_mean"]) == 2
    assert main([*words, "--seed", str(2**70)]) == 2
    assert "--seed is" in capsys.readouterr().err
    assert main([*words, "--lpips", "vgg.pth"]) == 2
    assert "both --lpips (its heads) and --vgg" in capsys.readouterr().err


def test_sampled_latents_do_not_depend_on_the_batch(vae, images):
    key = jax.random.key(0)
    whole = measure_autoencoder(vae, images, make_mesh(), batch_size=7, key=key)
    parts = measure_autoencoder(vae, images, make_mesh(), batch_size=2, key=key)
    assert parts.psnr == pytest.approx(whole.psnr, rel=1e-5)
    assert parts.latents.variance == pytest.approx(whole.latents.variance, rel=1e-5)
