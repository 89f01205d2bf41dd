"""`inspect` on every format.

Runs and training checkpoints themselves are in tests/training/test_exchange.py.
"""

import functools
import shutil

import diffusers_vae
import jax
import numpy as np
import parity
import pytest
import torch
import transformers
from exported import export_sit, export_vit
from pe_files import KINDS, pe_tensors, small_pe
from sits import sit_of
from test_vit_names import DEPTH, FILES, timm_names
from torch_vits import small
from weight_files import (
    VAE,
    inspect,
    ldm_tensors,
    numbers,
    parts_of,
    random,
    second_stage,
    write_statistics,
)

from repae_jax.cli import main
from repae_jax.interop import files, sit
from repae_jax.interop.detect_format import detect
from repae_jax.interop.formats import FORMATS
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import ViT, create_vit
from repae_jax.runs.weights import save_teacher

SIT_TEXT = (
    "own size: width 16, depth 2, {}, patch 2, latents 8 x 8 x 2, 11 rows of labels, "
    "teachers' widths 8"
)


UNKNOWN_HEADS = SIT_TEXT.format("unknown number of heads")


VAE_TEXT = "AutoencoderKL, 2 x 2 pixels -> 3 channels, widths 32-64, 32 groups"


def test_a_run(run, checkpoint, capsys):
    found = inspect(run, capsys)
    assert found["format"] == FORMATS["run"]
    assert (found["name"], found["step"]) == ("tiny", "3 of 4")
    assert found["trains"] == "backbone, tokenizer, discriminator"
    assert found["SiT"] == SIT_TEXT.format("2 heads")
    assert found["VAE"].endswith("4 x 4 pixels -> 2 channels, widths 4-4-4, 2 groups")
    vae = parts_of(checkpoint, "vae")["vae"]
    values = sum(tensor.numel() for tensor in vae.values())
    assert found["tokenizer"] == f"{len(vae)} tensors: {values} float32"


def test_a_damaged_checkpoint_of_a_run_is_said(random_steps, tmp_path, capsys):
    found = inspect(random_steps, capsys)
    assert (found["step"], found["saved"]) == ("4 of 4", "2, 4")
    assert found["files"] == "of step 4: match their checksums"
    shutil.copytree(random_steps, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for step, left in (("4", "2 of 4"), ("2", "no whole checkpoint")):
        path = max((folder / step / "state").rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        found = inspect(tmp_path / "run", capsys)
        assert found["step"] == left
        assert f"{folder / step} is damaged: " in found["damaged"]
        assert path.name in found["damaged"]
        assert found.get("files", "of step 2: ").startswith("of step 2: ")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["2", "4"]


def test_a_run_without_a_checkpoint(run, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.json", tmp_path / "run")
    assert inspect(tmp_path / "run", capsys)["step"] == "no checkpoint yet"


def test_the_originals_checkpoint(checkpoint, capsys):
    whole = parts_of(checkpoint, "model", "vae", "discriminator")
    # an experiment's folder stands for the newest in it
    (checkpoint.parent / "0000001.pt").write_bytes(b"older, and damaged")
    for path in (checkpoint, checkpoint.parent.parent):
        found = inspect(path, capsys)
        assert found["path"] == str(checkpoint)
        assert found["format"] == FORMATS["repae"]
        assert found["step"] == "3"
        assert found["SiT"] == UNKNOWN_HEADS
        assert found["VAE"].endswith("4 x 4 pixels -> 2 channels, widths 4-4-4, 2 groups")
        for key, tensors in whole.items():
            kinds = {}
            for tensor in tensors.values():
                kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.numel()
            assert found[key].startswith(f"{len(tensors)} tensors: {kinds[torch.float32]} float32")
            assert found[key].endswith("int64") == (torch.int64 in kinds)
        assert {"ema", "opt", "opt_vae", "opt_disc", "latents"} <= set(found)


@pytest.mark.parametrize("kind", ["ldm", "repa", "repa-first"])
def test_checkpoints_on_a_frozen_vae(kind, checkpoint, tmp_path, capsys):
    torch.save(second_stage(checkpoint, kind), tmp_path / "x.pt")
    found = inspect(tmp_path / "x.pt", capsys)
    assert found["format"] == FORMATS[kind.partition("-")[0]]
    assert (found["step"], found["SiT"]) == ("3", UNKNOWN_HEADS)
    assert not {"VAE", "vae", "latents"} & set(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vae_of_diffusers(dtype, tmp_path, capsys):
    peer = parity.randomise(diffusers_vae.make_vae(VAE)).to(dtype)
    peer.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    peer.save_pretrained(tmp_path / "vae")
    found = inspect(tmp_path / "vae", capsys)
    assert (found["format"], found["VAE"]) == (FORMATS["diffusers"], VAE_TEXT)
    assert found["latents"] == "3 channels, mean 0.25 to 0.25, standard deviation 2 to 2"
    name, count = str(dtype).removeprefix("torch."), len(peer.state_dict())
    amount = f"{numbers(peer) / 1e6:.2f} M"
    assert found["weights"] == f"{count} tensors: {amount} {name}"
    # the file alone, without its config.json
    alone = tmp_path / "alone.safetensors"
    shutil.copy(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", alone)
    found = inspect(alone, capsys)
    assert (found["format"], found["VAE"]) == (FORMATS["vae-tensors"], VAE_TEXT)
    assert "latents" not in found


def test_a_vae_of_qwen_image(tmp_path, capsys):
    import diffusers

    diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=3, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.1, -0.2, 0.3],
        latents_std=[0.5, 1.0, 2.0],
    ).save_pretrained(tmp_path)  # fmt: skip
    found = inspect(tmp_path, capsys)
    assert found["format"] == FORMATS["diffusers"]
    assert found["VAE"] == "AutoencoderKLQwenImage, 4 x 4 pixels -> 3 channels, widths 4-8-8"
    assert found["latents"] == "3 channels, mean -0.2 to 0.3, standard deviation 0.5 to 2"


@pytest.mark.parametrize("nested", [False, True])
def test_a_vae_under_ldms_names(nested, tmp_path, capsys):
    tensors = ldm_tensors()
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "vae.pt")
    write_statistics(tmp_path / "vae-latents-stats.pt")
    found = inspect(tmp_path / "vae.pt", capsys)
    assert (found["format"], found["VAE"]) == (FORMATS["vae"], VAE_TEXT)
    assert found["latents"] == "3 channels, mean -0.2 to 0.3, standard deviation 0.5 to 2"
    found = inspect(tmp_path / "vae-latents-stats.pt", capsys)
    assert found["format"] == FORMATS["statistics"]
    assert found["latents"] == "3 channels, mean -0.2 to 0.3, standard deviation 0.5 to 2"
    assert found["weights"] == "2 tensors: 6 float32"


def test_single_networks(checkpoint, tmp_path, capsys):
    parts = parts_of(checkpoint, "ema", "discriminator")
    torch.save(parts["ema"], tmp_path / "sit.pt")
    torch.save(parts["discriminator"], tmp_path / "discriminator.pt")
    found = inspect(tmp_path / "sit.pt", capsys)
    assert (found["format"], found["SiT"]) == (FORMATS["sit"], UNKNOWN_HEADS)
    found = inspect(tmp_path / "discriminator.pt", capsys)
    assert found["format"] == FORMATS["discriminator"]
    assert found["PatchGAN"] == "2 layers, 4 filters"


def test_a_sit_with_qk_norm_tells_its_heads(tmp_path, capsys):
    model = sit_of(
        latent_size=4, latent_channels=3, patch_size=2, hidden_size=12, depth=1, num_heads=3,
        num_classes=5, encoder_depth=1, teacher_dims=(6, 7), projector_dim=9, qk_norm=True,
    )  # fmt: skip
    tensors = export_sit(random(sit.sit_shapes(model)), model)
    files.write_safetensors(tmp_path / "x.safetensors", tensors)
    assert inspect(tmp_path / "x.safetensors", capsys)["SiT"] == (
        "own size: width 12, depth 1, 3 heads, patch 2, latents 4 x 4 x 3, 6 rows of labels, "
        "teachers' widths 6, 7"
    )


def lpips_files():
    """Names of torchvision's vgg16-397923af.pth, LPIPS's vgg.pth, and a whole LPIPS module."""
    blocks = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    vgg = [f"features.{n}.{kind}" for block in blocks for n in block for kind in ("weight", "bias")]
    heads = [f"lin{k}.model.1.weight" for k in range(5)]
    module = [
        f"net.slice{j}.{n}.{kind}"
        for j, block in enumerate(blocks, 1)
        for n in block
        for kind in ("weight", "bias")
    ]
    return {
        "torchvision's VGG16": [*vgg, "classifier.0.weight"],
        "linear heads": heads,
        "torchvision's VGG16, linear heads": vgg + heads,
        "VGG16 as a part of LPIPS, linear heads": ["scaling_layer.shift", *module, *heads],
    }


@pytest.mark.parametrize("parts", lpips_files())
def test_lpips(parts, tmp_path, capsys):
    torch.save({name: torch.ones(1) for name in lpips_files()[parts]}, tmp_path / "x.pth")
    found = inspect(tmp_path / "x.pth", capsys)
    assert (found["format"], found["holds"]) == (FORMATS["lpips"], parts)


def test_a_teacher_of_ours(tmp_path, capsys):
    model = ViT(patch_size=4, native_grid=2, dim=8, depth=3, num_heads=2)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    params = random(jax.eval_shape(model.init, jax.random.key(0), images))["params"]
    notes = {"accuracy": 0.9731, "data": "digits", "seed": 0}
    save_teacher(str(tmp_path / "teacher.safetensors"), params, notes)
    found = inspect(tmp_path / "teacher.safetensors", capsys)
    assert found["format"] == FORMATS["teacher"]
    assert found["teacher"] == "ViT: width 8, depth 3, patch 4"
    assert found["accuracy"] == "97.3 % of held-out digits"
    # the notes stay in a .safetensors file, and a .pt file does without
    for name in ("again.safetensors", "again.pt"):
        assert main(["convert", str(tmp_path / "teacher.safetensors"), str(tmp_path / name)]) == 0
        again = inspect(tmp_path / name, capsys)
        kept = {"accuracy"} if name.endswith("safetensors") else set()
        assert again == {k: v for k, v in found.items() if k in again} | {"path": again["path"]}
        assert set(found) - set(again) == {"accuracy"} - kept


# who could have written each kind of file, by its names alone
FAMILIES = {
    "dino": "DINO or MoCo v3 or MAE",
    "mocov3 backbone": "DINO or MoCo v3 or MAE",
    "dino checkpoint": "DINO",
    "dino transformers": "DINO",
    "mocov3": "MoCo v3",
    "mae": "MAE",
    "mae decoder": "MAE",
    "mae transformers": "MAE",
    "ijepa": "I-JEPA",
    "ijepa transformers": "I-JEPA",
    "clip": "CLIP",
    "clip visual": "CLIP",
    "clip transformers": "CLIP",
    "clip transformers visual": "CLIP",
}


@pytest.mark.parametrize("kind", FILES)
def test_teachers_of_others(kind, tmp_path, capsys):
    preset, make, _, naming, _ = FILES[kind]
    content = make()
    files.write_torch(tmp_path / "x.pth", content)
    found = inspect(tmp_path / "x.pth", capsys)
    names = "its authors' names" if naming == "authors" else "transformers' names"
    assert found["format"] == FORMATS["vit"]
    assert found["teacher"] == (
        f"{FAMILIES[kind]} under {names}: width 24, depth {DEPTH}, patch 4, 4 x 4 positions; "
        "arch none of the published"
    )
    # and the tensors that make the teacher survive the other container
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors")]) == 0
    again = load_vit(files.read_stored(tmp_path / "x.safetensors"), small(preset))
    jax.tree.map(np.testing.assert_array_equal, again, load_vit(content, small(preset)))


@pytest.mark.parametrize("kind", KINDS)
def test_pe(kind, tmp_path, capsys):
    files.write_torch(tmp_path / "x.pt", pe_tensors(kind))
    assert inspect(tmp_path / "x.pt", capsys)["teacher"] == (
        "PE under its authors' names: width 24, depth 2, patch 4, 4 x 4 positions; "
        "arch none of the published"
    )
    model = small_pe(kind)
    named = export_vit(load_vit(pe_tensors(kind), model), model, "timm", marked=False)
    if kind == "core":
        named["attn_pool.latent"] = np.zeros((1, 1, 24), np.float32)
    files.write_safetensors(tmp_path / "x.safetensors", named)
    found = inspect(tmp_path / "x.safetensors", capsys)["teacher"]
    assert found.startswith("PE under timm's names: width 24, depth 2, patch 4, 4 x 4 positions")


@pytest.mark.parametrize("name", ["dinov3-s", "dinov3-splus"])
def test_the_mlp_tells_presets_of_one_size_apart(name, tmp_path, capsys):
    model = create_vit(name)
    init = functools.partial(model.init, jax.random.key(0))
    shapes = jax.eval_shape(init, np.zeros((1, 16, 16, 3), np.float32))
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float16), shapes)
    files.write_safetensors(tmp_path / "x.safetensors", export_vit(blank, model))
    assert inspect(tmp_path / "x.safetensors", capsys)["teacher"].endswith(f"; arch {name}")


def dinov2(folder, registers):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    module = getattr(transformers, f"{kind}Model")(config)
    module.save_pretrained(folder)
    return module


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2(registers, tmp_path, capsys):
    module = dinov2(tmp_path / "theirs", registers)
    found = inspect(tmp_path / "theirs", capsys)
    text = "DINOv2 under {}: width 8, depth 2, patch 4, 2 x 2 positions; arch none of the published"
    assert found["path"] == str(tmp_path / "theirs" / "model.safetensors")
    assert (found["format"], found["teacher"]) == (
        FORMATS["vit"], text.format("transformers' names")
    )  # fmt: skip
    assert found["weights"] == f"{len(module.state_dict())} tensors: {numbers(module)} float32"
    tensors = files.read_stored(tmp_path / "theirs" / "model.safetensors")
    model = create_vit(
        "dinov2-b-reg" if registers else "dinov2-b",
        dim=8, depth=2, num_heads=2, patch_size=4, native_grid=2,
    )  # fmt: skip
    files.write_torch(tmp_path / "theirs.pth", export_vit(load_vit(tensors, model), model))
    found = inspect(tmp_path / "theirs.pth", capsys)
    assert found["teacher"] == text.format("its authors' names")
    # older repositories have a pickle only
    (tmp_path / "theirs" / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    assert inspect(tmp_path / "theirs", capsys)["format"] == FORMATS["vit"]


def test_the_format_is_told_by_content_and_not_by_name(tmp_path):
    write_statistics(tmp_path / "sit-discriminator-vae.pth.tar")
    assert detect(tmp_path / "sit-discriminator-vae.pth.tar").format == "statistics"


def test_a_deep_vit_is_known(tmp_path, capsys):
    files.write_torch(tmp_path / "x.pth", timm_names(depth=12))
    assert "depth 12," in inspect(tmp_path / "x.pth", capsys)["teacher"]
