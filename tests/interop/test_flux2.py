"""FLUX.2's VAE: diffusers' class, its pipelines' normalization, and the authors' file."""

import dataclasses
import json
import types

import diffusers
import jax
import numpy as np
import parity
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from pipelines import decoded_latents

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.interop import files, tables
from repae_jax.interop.flux2 import export_flux2, flux2_config, flux2_dimensions, load_flux2
from repae_jax.interop.vae_files import read_vae, write_diffusers, write_ldm
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.runs.pretrained import PretrainedVAE

SMALL = AutoencoderKL(
    channels=8, multipliers=(1, 2), latent_channels=16, num_res_blocks=1, groups=2, patchify=True
)
KINDS = {"same widths": SMALL, "small decoder": SMALL.clone(decoder_channels=4)}


def make(model, epsilon=1e-4):
    """diffusers' module, every weight and statistic random."""
    config = {k: v for k, v in flux2_config(model).items() if not k.startswith("_")}
    peer = diffusers.AutoencoderKLFlux2(**config | {"batch_norm_eps": epsilon})
    generator = torch.Generator().manual_seed(1)
    parity.randomise(peer)
    peer.bn.running_mean.data = torch.randn(16, generator=generator)
    peer.bn.running_var.data = 0.5 + torch.rand(16, generator=generator)
    return peer.eval()


def normalized(peer, z):
    """What the pipeline makes of a latent: patchified and normalized."""
    std = torch.sqrt(peer.bn.running_var + peer.config.batch_norm_eps)
    mean = peer.bn.running_mean
    z = Flux2Pipeline._patchify_latents(z)
    return (z - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_diffusers(kind):
    model = KINDS[kind]
    peer = make(model)
    params = load_flux2(parity.state_of(peer), model)
    images, noise = parity.normal(2, 16, 24, 3, seed=1), parity.normal(2, 4, 6, 16, seed=2)

    leaf, drawn = parity.to_nchw(images).requires_grad_(), torch.tensor(noise, requires_grad=True)
    posterior = peer.encode(leaf).latent_dist
    z = posterior.mean + posterior.std * Flux2Pipeline._unpatchify_latents(
        drawn.permute(0, 3, 1, 2)
    )
    outputs = (
        peer.decode(z).sample,
        Flux2Pipeline._patchify_latents(posterior.mean),
        Flux2Pipeline._patchify_latents(posterior.logvar),
    )
    expected = [output.permute(0, 2, 3, 1) for output in outputs]

    def ours(params, images, noise):
        posterior, reconstruction = model.apply({"params": params}, images, noise)
        return [reconstruction, posterior.mean, posterior.logvar]

    by_params = parity.assert_outputs_equal(ours, params, (images, noise), expected, (leaf, drawn))
    parity.assert_tensors_close(
        export_flux2(by_params, model), parity.gradients_of(peer), vanishing=_by_softmax
    )


def _by_softmax(name):
    """A key's bias shifts all logits of a query alike."""
    return name.replace("bias", "weight") if name.endswith("to_k.bias") else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2])
def test_a_folder_normalizes_as_the_pipeline_does_and_comes_back(kind, epsilon, tmp_path):
    peer = make(KINDS[kind], epsilon)
    peer.save_pretrained(tmp_path / "theirs")
    vae = PretrainedVAE.from_pretrained(tmp_path / "theirs")
    assert vae.module == KINDS[kind]
    images = parity.normal(1, 16, 16, 3, seed=0).clip(-1, 1)
    with torch.no_grad():
        z = peer.encode(parity.to_nchw(images)).latent_dist.mode()
        expected = normalized(peer, z)
    parity.assert_close(
        vae.normalize(vae.encode(images).mean), parity.to_nhwc(expected), "normalized latents"
    )
    vae.save_pretrained(tmp_path / "ours")
    back = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = normalized(back, back.encode(parity.to_nchw(images)).latent_dist.mode())
    parity.assert_close(parity.to_nhwc(again), parity.to_nhwc(expected), "after the way back")
    if epsilon == 1e-4:
        for name, array in peer.state_dict().items():
            np.testing.assert_array_equal(back.state_dict()[name], array, err_msg=name)


def test_what_is_exported_is_normalized_once_by_the_pipeline(tmp_path):
    """By what it does to an image's latents, and to its own before the decoder."""
    make(SMALL).save_pretrained(tmp_path / "theirs")
    vae = read_vae(tmp_path / "theirs")
    rng = np.random.default_rng(0)
    statistics = {"mean": rng.normal(size=16), "var": rng.uniform(0.1, 20, 16)}
    statistics = {key: value.astype(np.float32) for key, value in statistics.items()}
    write_diffusers(tmp_path / "ours", dataclasses.replace(vae, statistics=statistics))
    back = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "ours").eval()
    vae = read_vae(tmp_path / "ours")
    images = parity.normal(1, 16, 16, 3, seed=0).clip(-1, 1)
    pipeline = types.SimpleNamespace(vae=back, _patchify_latents=Flux2Pipeline._patchify_latents)
    with torch.no_grad():
        theirs = Flux2Pipeline._encode_vae_image(pipeline, parity.to_nchw(images), None)
    latents = vae.normalize(vae.encode(images).mean)
    parity.assert_close(latents, parity.to_nhwc(theirs), "normalized latents")
    z = parity.normal(2, 3, 2, 16, seed=1)
    expected = decoded_latents(
        "flux2/pipeline_flux2", dict(back.config), parity.to_nchw(z), bn=back.bn
    )
    parity.assert_close(vae.denormalize(z), parity.to_nhwc(expected), "latents", 1e-6)
    moments = (statistics["mean"], np.sqrt(statistics["var"] + 1e-4))
    parity.assert_close(expected.detach().permute(0, 2, 3, 1), z * moments[1] + moments[0], "z")


def test_convert_says_what_it_writes(tmp_path, capsys):
    """`convert` writes one file, which holds the statistics; a file named as theirs may exist."""
    make(SMALL).save_pretrained(tmp_path / "theirs")
    (tmp_path / "ae-latents-stats.pt").write_bytes(b"another's")
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ae.safetensors")]) == 0
    assert "beside it" not in capsys.readouterr().out
    assert (tmp_path / "ae-latents-stats.pt").read_bytes() == b"another's"


def test_the_authors_file_goes_in_and_out(tmp_path):
    peer = make(SMALL)
    peer.save_pretrained(tmp_path / "theirs")
    vae = read_vae(tmp_path / "theirs")
    write_ldm(tmp_path / "ae.safetensors", vae)
    names = set(files.read_tensors(tmp_path / "ae.safetensors"))
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.bias", "bn.running_mean"} < names
    assert not any(name.startswith(("quant_conv", "post_quant_conv")) for name in names)
    assert not list(tmp_path.glob("*stats*"))
    back = read_vae(tmp_path / "ae.safetensors")
    assert back.module == SMALL
    for one, two in zip(jax.tree.leaves(vae.params), jax.tree.leaves(back.params), strict=True):
        np.testing.assert_array_equal(one, two)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(back.statistics[name], vae.statistics[name])


@pytest.mark.parametrize("name", ["flux2", "flux2-small"])
def test_published_dimensions_have_the_tensors_of_diffusers(name):
    model = AutoencoderKL(**VAE_CONFIGS[name])
    widths = [96, 192, 384, 384] if name == "flux2-small" else None
    with torch.device("meta"):
        reference = diffusers.AutoencoderKLFlux2(decoder_block_out_channels=widths)
    expected = {
        name: tuple(t.shape) for name, t in reference.state_dict().items() if name[:3] != "bn."
    }
    shapes = parameter_shapes(model)
    assert tables.exported_shapes(lambda params: export_flux2(params, model), shapes) == expected
    assert AutoencoderKL(**flux2_dimensions(dict(reference.config))) == model
    assert model.factor == 16


def test_a_missing_statistic_is_named(tmp_path):
    make(SMALL).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = files.read_tensors(path)
    del tensors["bn.running_var"]
    files.write_safetensors(path, tensors, {"format": "pt"})
    with pytest.raises(UserError, match="tensor 'bn.running_var' is missing"):
        read_vae(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [1, 1]}, r"patch_size is \[1, 1\]"),
        ({"decoder_block_out_channels": [4, 4]}, "decoder_block_out_channels is"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
    ],
)
def test_another_network_is_refused(change, message):
    with pytest.raises(UserError, match=f"FILE: {message}"):
        flux2_dimensions(flux2_config(SMALL) | change, source="FILE")


def test_a_vae_without_statistics_is_written_with_zeros_and_ones(tmp_path):
    vae = read_vae_of(tmp_path)
    write_diffusers(tmp_path / "out", vae)
    peer = diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "out")
    assert not peer.bn.running_mean.any()
    assert (peer.bn.running_var == 1).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["latent_channels"] == 4


def read_vae_of(folder):
    make(SMALL).save_pretrained(folder / "in")
    return dataclasses.replace(read_vae(folder / "in"), statistics=None)
