"""RepaeRAE of a pipeline's folder: images and latents as ours, its way back, and bad input."""

import json
import re

import diffusers
import jax
import numpy as np
import pytest
import torch
import torch_pipelines
from safetensors.numpy import load_file
from test_torch_pipeline_vaes import FAMILIES, RAE, RAEV2
from torch_pipelines import with_tokenizer
from weight_files import refused

from repae_jax.cli import main
from repae_jax.interop import pipeline_rae, vae_files
from repae_jax.runs.open_run import open_on_host, vae_of

OWN = [name for name in FAMILIES if name.startswith("rae") and name != "rae"]
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def exported(config, tmp_path, *words):
    """A random run and its pipeline's folder."""
    run, folder = tmp_path / "run", tmp_path / "pipe"
    torch_pipelines.save_random_run(run, config)
    assert main(["convert", str(run), str(folder), "--to", "pipeline", "--quiet", *words]) == 0
    return run, folder


@pytest.mark.parametrize("family", OWN)
def test_it_encodes_and_decodes_as_ours(family, tmp_path):
    run, folder = exported(with_tokenizer(**FAMILIES[family]), tmp_path)
    peer = torch_pipelines.open_in_torch(folder).vae
    assert type(peer).__name__ == "RepaeRAE"
    vae = vae_files.read_vae(folder / "vae")
    of_run = open_on_host(run)
    state = of_run.state
    stored = {"params": state.params["tokenizer"], **state.frozen["tokenizer"]}
    jax.tree.map(np.testing.assert_array_equal, dict(vae.variables), stored)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = peer.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent
        decoded = peer.decode(theirs).sample.permute(0, 2, 3, 1).numpy()
    latents = np.asarray(vae.encode(images).mean)
    grid_last = {name: np.moveaxis(peer.get_buffer(f"_latents_{name}").numpy(), 0, -1)
                 for name in ("mean", "std")}  # fmt: skip
    np.testing.assert_array_equal(grid_last["mean"], vae.statistics["mean"])
    var = (grid_last["std"] + 1e-5) ** 2 - 1e-4
    np.testing.assert_allclose(var, vae.statistics["var"], rtol=1e-4)
    assert latents.std() > 0.3
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(theirs, latents, atol=2e-4)
    ours = np.asarray(vae.decode(latents))
    assert ours.std() > 0.1
    np.testing.assert_allclose(decoded, ours, atol=2e-4 * abs(ours).max())


@pytest.mark.parametrize("family", ["rae of other positions", "rae of a moved table", "raev2"])
def test_it_comes_back(family, tmp_path):
    run, folder = exported(with_tokenizer(**FAMILIES[family]), tmp_path)
    assert main(["convert", str(folder), str(tmp_path / "back"), "--quiet"]) == 0
    first, back = (open_on_host(path) for path in (run, tmp_path / "back"))
    for part in ("params", "frozen"):
        one, other = (getattr(opened.state, part)["tokenizer"] for opened in (first, back))
        jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))
    assert back.models.tokenizer == first.models.tokenizer
    # and alone, with the code that it needs
    vae_files.read_vae(folder / "vae").save_pretrained(tmp_path / "alone")
    torch_pipelines.keep_code_apart()
    peer = diffusers.AutoModel.from_pretrained(str(tmp_path / "alone"), trust_remote_code=True)
    assert type(peer).__name__ == "RepaeRAE"
    alone = load_file(tmp_path / "alone" / "diffusion_pytorch_model.safetensors")
    for name, array in load_file(folder / WEIGHTS).items():
        close = 1e-5 if name.endswith("pos_embed") else 0.0  # of a step that is read to six digits
        np.testing.assert_allclose(alone[name], array, rtol=0, atol=close)


def test_diffusers_class_is_written_where_it_computes_the_same(tmp_path):
    _, folder = exported(with_tokenizer(**RAE, position_step=2.0), tmp_path)
    assert type(torch_pipelines.open_in_torch(folder).vae) is diffusers.AutoencoderRAE
    assert not list((folder / "vae").glob("*.py"))


def test_positions_stay_float32(tmp_path):
    config = with_tokenizer(**RAEV2, table_grid=8)
    _, folder = exported(config, tmp_path, "--dtype", "float16")
    stored = load_file(folder / WEIGHTS)
    wide = {name for name, array in stored.items() if array.dtype == np.float32}
    assert {"encoder.rope_embed.periods", "decoder.decoder_pos_embed"} <= wide
    assert {array.dtype.name for array in stored.values()} == {"float16", "float32"}
    peer = torch_pipelines.open_in_torch(folder, dtype=torch.float16).vae
    assert peer.decoder.decoder_embed.weight.dtype == torch.float16


NARROW = {
    "dinov2": RAE,
    "dinov2 of diffusers": dict(**RAE, position_step=2.0),
    "mae": RAE | dict(encoder="mae", encoder_patch=16, position_step=2.0),
    "siglip2": FAMILIES["raev2 of siglip"],
    "dinov3": FAMILIES["raev2"],
}


@pytest.mark.parametrize("encoder", NARROW)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_encode_and_decode(encoder, dtype, tmp_path):
    run, folder = exported(with_tokenizer(**NARROW[encoder]), tmp_path, "--dtype", dtype)
    narrow = getattr(torch, dtype)
    peer = torch_pipelines.open_in_torch(folder, dtype=narrow).vae
    of_diffusers = type(peer) is diffusers.AutoencoderRAE
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    given = torch.tensor(images).permute(0, 3, 1, 2).to(narrow)
    with torch.no_grad():
        theirs = peer.encode((given + 1) / 2 if of_diffusers else given).latent
        peer.decode(theirs)
    vae = vae_of(open_on_host(run))
    ours = vae.encode(images).mean
    ours = np.asarray(vae.normalize(ours) if of_diffusers else ours)
    theirs = theirs.permute(0, 2, 3, 1).float().numpy()
    relative = np.abs(theirs - ours).mean() / np.abs(ours).mean()
    assert relative < (0.01 if dtype == "float16" else 0.08)


def test_patches_of_mae_keep_their_order_in_narrow_types(tmp_path):
    """bfloat16 has no whole numbers beyond 256 but even ones."""
    config = with_tokenizer(**NARROW["mae"])
    _, folder = exported(config, tmp_path)
    peer = torch_pipelines.open_in_torch(folder).vae
    seen = []
    peer.encoder.forward = lambda pixels, noise, **_: seen.append(noise)
    peer.grid = 32
    peer._run_encoder(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16))
    assert torch.equal(seen[0].argsort(), torch.arange(32**2)[None])


def test_keys_of_diffusers_class_are_refused(tmp_path, capsys):
    _, folder = exported(with_tokenizer(**FAMILIES["raev2"]), tmp_path)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 2.0}))
    assert "scaling_factor is 2.0, a key that RepaeRAE lacks" in refused(
        ["inspect", folder / "vae"], capsys
    )


def test_other_sizes_are_refused_in_torch(tmp_path):
    _, folder = exported(with_tokenizer(**FAMILIES["raev2"]), tmp_path)
    peer = torch_pipelines.open_in_torch(folder).vae
    with pytest.raises(ValueError, match=re.escape("images of (32, 16) pixels: give 32 x 32")):
        peer.encode(torch.zeros(1, 3, 32, 16))
    with pytest.raises(ValueError, match=re.escape("latents of (4, 8): give 8 x 8")):
        peer.decode(torch.zeros(1, 64, 4, 8))


def test_what_neither_class_has_is_refused(tmp_path, capsys):
    config = with_tokenizer(**RAE, position_step=2.0, encoder_hidden=100)
    torch_pipelines.save_random_run(tmp_path / "run", config)
    words = ["convert", tmp_path / "run", tmp_path / "pipe", "--to", "pipeline"]
    assert "inner width 100, but those of transformers' DINOv2" in refused(words, capsys)
    assert not (tmp_path / "pipe").exists()


def test_a_vae_alone_brings_its_code(tmp_path, capsys):
    torch_pipelines.save_random_run(tmp_path / "run", with_tokenizer(**FAMILIES["raev2"]))
    words = ["convert", tmp_path / "run", tmp_path / "vae", "--to", "diffusers"]
    assert main(list(map(str, words))) == 0
    assert "class of its own, for AutoModel" in capsys.readouterr().out
    assert (tmp_path / "vae" / "repae_rae.py").is_file()


def test_latents_that_are_not_square_are_refused():
    statistics = {"mean": np.zeros((4, 8, 64)), "var": np.ones((4, 8, 64))}
    module = vae_files.RAE(**{k: v for k, v in RAE.items() if k != "family"})
    with pytest.raises(Exception, match="4 x 8 positions"):
        pipeline_rae.is_needed(module, statistics)
