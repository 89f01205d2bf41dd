"""Latent spaces side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repae_jax.cli import main
from repae_jax.commands.evaluate_latents import parse_vaes
from repae_jax.errors import UserError
from repae_jax.evaluation.image_sets import open_images
from repae_jax.evaluation.latent_spaces import measure_latents
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.distributions import Point
from repae_jax.runs.pretrained import PretrainedVAE

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


def make_vae(seed):
    module = AutoencoderKL(
        channels=4, multipliers=(1, 1), latent_channels=3, num_res_blocks=1, groups=2,
        middle_attention=False,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(module)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.3, s.shape), jnp.float32), shapes)
    return PretrainedVAE(module, params)


class Blocks:
    """A "VAE" whose latents are known: the images' mean colours in blocks of two pixels."""

    class module:
        factor = 2

    def encode(self, images):
        blocks = images.reshape(-1, 8, 2, 8, 2, 3).astype(np.float32).mean((2, 4))
        return Point(blocks / 100)


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=IMAGES)
    return open_images(tmp_path / "images.npz")


def test_latents_and_their_spectrum(images):
    space = measure_latents("x", Blocks(), images, batch_size=3)
    expected = IMAGES.reshape(7, 8, 2, 8, 2, 3).mean((2, 4)) / 100
    np.testing.assert_allclose(space.latents, expected, rtol=1e-5)
    # noise is white: the same power everywhere, so the upper half of the rings holds half of it
    assert space.power[1:] == pytest.approx(1, abs=0.4)
    assert 0.35 < space.high_share < 0.65


def test_latents_that_are_not_finite_are_said(images):
    class Broken(Blocks):
        def encode(self, images):
            return Point(np.full((len(images), 8, 8, 3), np.nan))

    with pytest.raises(UserError, match="x makes latents that are NaN"):
        measure_latents("x", Broken(), images, batch_size=3)


def test_a_batch_that_does_not_fit_is_said(images, tmp_path, capsys, monkeypatch):
    def full(self, images):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    make_vae(1).save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(PretrainedVAE, "encode", full)
    words = ["evaluate-latents", str(tmp_path / "images.npz"), str(tmp_path / "vae"), "--quiet"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "lower --batch-size" in capsys.readouterr().err


def test_smooth_images_have_no_high_frequencies(tmp_path):
    x = np.arange(16)[None, :, None, None] * np.ones((5, 1, 16, 3))
    smooth = (120 + 100 * np.sin(2 * np.pi * x / 16 + np.arange(5)[:, None, None, None])).astype(
        np.uint8
    )
    np.savez(tmp_path / "smooth.npz", arr_0=smooth)
    space = measure_latents("x", Blocks(), open_images(tmp_path / "smooth.npz"), batch_size=5)
    assert space.high_share < 0.01


def test_the_command_writes_a_report(images, tmp_path, capsys):
    for seed in (1, 2):
        make_vae(seed).save_pretrained(tmp_path / f"vae{seed}")
    vaes = [f"before={tmp_path / 'vae1'}", str(tmp_path / "vae2")]
    words = ["evaluate-latents", str(tmp_path / "images.npz"), *vaes, "--output"]
    assert main([*words, str(tmp_path / "out"), "--shown", "4", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "before: variance" in printed
    assert "vae2: variance" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert main([*words, str(tmp_path / "out"), "--count", "0"]) == 2
    assert "--count is 0" in capsys.readouterr().err


def test_names_of_vaes():
    assert parse_vaes(["a/b", "x=c/d=e"]) == {"b": "a/b", "x": "c/d=e"}
    for words in (["a/b", "c/b"], ["=x"], ["x="]):
        with pytest.raises(UserError, match="NAME=VAE"):
            parse_vaes(words)
