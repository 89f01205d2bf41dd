"""Weights as training leaves them: wrapped, in an entry, beside other networks."""

import jax
import numpy as np
import pytest
import torch
from exported import export_discriminator, export_lpips
from saved import assert_same_content, saved_content
from test_inspect import lpips_files
from test_vit_names import openai_clip, timm_names
from torch_vits import small
from weight_files import (
    VAE,
    assert_same_trees,
    inspect,
    ldm_tensors,
    parts_of,
    random,
    refused,
    wrapped,
)

from repae_jax.cli import main
from repae_jax.interop import discriminator, files, lpips
from repae_jax.interop.detect_format import detect
from repae_jax.interop.extract import extract
from repae_jax.interop.vae_files import read_vae, read_weights
from repae_jax.interop.vit import load_vit
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.lpips import LPIPS
from repae_jax.runs.pretrained import PretrainedVAE

WRAPPERS = [
    "module.", "_orig_mod.", "vae.", "first_stage_model.", "model.", "module._orig_mod.",
    "model.first_stage_model.",
]  # fmt: skip


def assert_same_tensors(one, other):
    """Of two files, in any order."""
    one, other = (dict(sorted(saved_content(path).items())) for path in (one, other))
    assert_same_content(one, other)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A VAE under LDM's names, and its parameters."""
    path = tmp_path_factory.mktemp("plain") / "vae.pt"
    torch.save(ldm_tensors(), path)
    return path, read_vae(path).params


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_wrapped_vae_is_the_same(prefix, plain, tmp_path):
    tensors = wrapped(prefix, ldm_tensors())
    for content in (tensors, {"model": tensors, "epoch": 3}):
        torch.save(content, tmp_path / "x.pt")
        vae = read_vae(tmp_path / "x.pt")
        assert_same_trees(vae.params, plain[1])
        assert vae.notes == ()


@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_the_commands_find_a_wrapped_vae(entry, plain, tmp_path, capsys):
    tensors = wrapped("module.", ldm_tensors())
    torch.save({entry: tensors} if entry else tensors, tmp_path / "x.pt")
    found = inspect(tmp_path / "x.pt", capsys)
    assert found["inside"] == (f"{entry}: module." if entry else "module.")
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "out.pt")]) == 0
    assert_same_tensors(tmp_path / "out.pt", plain[0])


def judge():
    model = PatchDiscriminator(filters=4, num_layers=2)
    variables = random(discriminator.discriminator_shapes(model))
    return model, variables, export_discriminator(variables, model)


def vgg_and_heads():
    """One LPIPS module's tensors, of a network too small to be one."""
    return {name: np.ones(1, np.float32) for name in lpips_files()[
        "VGG16 as a part of LPIPS, linear heads"]}  # fmt: skip


def test_ldms_training_checkpoint(plain, tmp_path, capsys):
    """As latent-diffusion's trainer saves it: the loss has a discriminator, LPIPS and a logvar."""
    model, variables, tensors = judge()
    loss = wrapped("discriminator.", tensors) | wrapped("perceptual_loss.", vgg_and_heads())
    loss["logvar"] = np.zeros((), np.float32)
    loss = {name: torch.tensor(array) for name, array in loss.items()}
    content = {
        "epoch": 3,
        "state_dict": ldm_tensors() | wrapped("loss.", loss),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    }
    torch.save(content, tmp_path / "last.ckpt")
    rest = len(loss) - len(tensors)
    found = inspect(tmp_path / "last.ckpt", capsys)
    assert found["inside"] == "state_dict"
    left = f"loss.* ({len(loss)} tensors), optimizer_states (1 tensor)"
    assert found["note"] == f"left out, as it is no part of the VAE: {left}"
    # the VAE and its discriminator are taken, and the rest is said
    assert main(["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "vae.pt")]) == 0
    assert_same_tensors(tmp_path / "vae.pt", plain[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("beside it vae-discriminator-ckpt.pt")
    assert lines[1] == (
        f"{tmp_path / 'last.ckpt'}: left out, as it is no part of the VAE: "
        f"loss.* ({rest} tensors), optimizer_states (1 tensor)"
    )
    written = files.read_stored(tmp_path / "vae-discriminator-ckpt.pt")
    assert_same_trees(discriminator.load_discriminator(written, model), variables)
    # each of its networks is found by who asks for it
    loaded = discriminator.load_discriminator(files.read_tensors(tmp_path / "last.ckpt"), model)
    assert_same_trees(loaded, variables)
    heads = lpips.read_lpips(tmp_path / "last.ckpt", tmp_path / "last.ckpt")
    assert heads.keys() == vgg_and_heads().keys()


def test_vavaes_training_checkpoint(plain, tmp_path, capsys):
    """As LightningDiT's trainer of the VA-VAE saves it."""
    more = {"linear_proj.weight": torch.ones(3, 8, 1, 1), "linear_proj.bias": torch.ones(3)}
    more |= wrapped(
        "foundation_model.model.", {n: torch.tensor(a) for n, a in timm_names().items()}
    )
    torch.save({"state_dict": ldm_tensors() | more}, tmp_path / "vavae.pt")
    assert_same_trees(PretrainedVAE.from_pretrained(tmp_path / "vavae.pt").params, plain[1])
    said = capsys.readouterr().err
    assert said == (
        f"warning: {tmp_path / 'vavae.pt'}: left out, as it is no part of the VAE: "
        f"foundation_model.* ({len(more) - 2} tensors), linear_proj.* (2 tensors)\n"
    )


def test_the_vae_of_a_whole_latent_diffusion_model(plain, tmp_path, capsys):
    content = wrapped("first_stage_model.", ldm_tensors())
    content |= wrapped(
        "model.diffusion_model.", {f"out.{i}.weight": torch.ones(2) for i in range(9)}
    )
    content |= {"cond_stage_model.logit_scale": torch.ones(()), "model_ema.decay": torch.ones(())}
    torch.save({"state_dict": content}, tmp_path / "v1.ckpt")
    assert_same_trees(read_vae(tmp_path / "v1.ckpt").params, plain[1])
    note = inspect(tmp_path / "v1.ckpt", capsys)["note"]
    for part in ("model.* (9 tensors)", "cond_stage_model.* (1 tensor)", "model_ema.* (1 tensor)"):
        assert part in note


@pytest.mark.parametrize("where", ["entries", "prefixes"])
def test_two_of_a_kind_are_refused(where, tmp_path, capsys):
    tensors = ldm_tensors()
    content = {"model": tensors, "model_ema": tensors}
    if where == "prefixes":
        content = tensors | wrapped("ema.", tensors)
    torch.save(content, tmp_path / "x.pt")
    line = refused(["inspect", tmp_path / "x.pt"], capsys)
    places = "model and model_ema" if where == "entries" else "the top level and ema."
    assert f"x.pt: holds such a network under {places}: put the one to read" in line


def test_what_nobody_knows_is_not_dropped(tmp_path, capsys):
    """A VQ-VAE has a VAE's names and more: without its quantizer it is another network."""
    torch.save({"state_dict": ldm_tensors() | {"quantize.embedding.weight": torch.ones(9, 3)}},
               tmp_path / "vq.ckpt")  # fmt: skip
    line = refused(["inspect", tmp_path / "vq.ckpt"], capsys)
    assert "unexpected tensor 'quantize.embedding.weight'" in line


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("kind", ["timm", "clip"])
def test_wrapped_teachers(kind, prefix, tmp_path, capsys):
    tensors, preset = (timm_names(), "dino-b") if kind == "timm" else (openai_clip(), "clip-l")
    expected = load_vit(tensors, small(preset))
    assert_same_trees(load_vit(wrapped(prefix, tensors), small(preset)), expected)
    files.write_torch(tmp_path / "x.pth", wrapped(prefix, tensors))
    assert detect(tmp_path / "x.pth").format == "vit"


@pytest.mark.parametrize("prefix", ["module.", "loss.perceptual_loss."])
def test_wrapped_lpips(prefix):
    model = LPIPS(rescale_inputs=False)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, images)
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    tensors = export_lpips(zeros)
    found = extract(wrapped(prefix, tensors), lpips.SIGN, source="X")
    assert (found.prefix, found.tensors.keys()) == (prefix, tensors.keys())


@pytest.mark.parametrize("entry", [None, "state_dict", "ema"])
def test_a_wrapped_sit(entry, checkpoint, tmp_path, capsys):
    tensors = parts_of(checkpoint, "ema")["ema"]
    held = wrapped("module._orig_mod.", tensors)
    torch.save({entry: held} if entry else held, tmp_path / "x.pt")
    found = detect(tmp_path / "x.pt")
    assert (found.format, list(found.content)) == ("sit", list(tensors))
    assert inspect(tmp_path / "x.pt", capsys)["SiT"].startswith("own size: width 16, depth 2")


BLANK = {
    "quant_conv": (slice(0, 3), "quant_conv is all zeros: all latents are alike"),
    "post_quant_conv": (slice(None), "post_quant_conv is all zeros: all images decode alike"),
    "encoder.conv_out": (slice(None), "encoder.conv_out is all zeros: all latents are alike"),
    "decoder.conv_in": (slice(None), "decoder.conv_in is all zeros: all images decode alike"),
}


@pytest.mark.parametrize("layer", BLANK)
def test_a_layer_of_zeros_around_the_latent_is_said(layer, tmp_path, capsys):
    rows, message = BLANK[layer]  # of quant_conv the rows of the mean suffice
    tensors = ldm_tensors()
    tensors[f"{layer}.weight"][rows] = 0
    path = tmp_path / "x.pt"
    torch.save(tensors, path)
    PretrainedVAE.from_pretrained(path)
    assert capsys.readouterr().err == f"warning: {path}: {message}\n"
    assert inspect(path, capsys)["note"] == message
    read_weights(path, VAE)  # as training does
    assert capsys.readouterr().err == f"warning: {path}: {message}\n"
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert f"{path}: {message}" in capsys.readouterr().out


def test_a_layer_with_one_number_is_not(tmp_path, capsys):
    tensors = ldm_tensors()
    tensors["quant_conv.weight"][:] = 0
    tensors["quant_conv.weight"][1, 2] = 0.5
    torch.save(tensors, tmp_path / "x.pt")
    PretrainedVAE.from_pretrained(tmp_path / "x.pt")
    assert capsys.readouterr().err == ""
