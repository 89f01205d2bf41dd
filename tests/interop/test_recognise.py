"""What files and folders hold: `inspect` on every format, `convert` between containers, refusals.

Runs and training checkpoints themselves are in tests/training/test_exchange.py.
"""

import argparse
import itertools
import os
import pathlib
import pickle
import shutil

import diffusers_vae
import jax
import ml_dtypes
import numpy as np
import parity
import pytest
import tiny
import torch
import transformers
from safetensors import safe_open
from test_vit_names import DEPTH, FILES, timm_names
from torch_vits import small

from repae_jax.cli import main
from repae_jax.interop import autoencoder_kl, discriminator, files, sit
from repae_jax.interop.recognise import find
from repae_jax.interop.targets import FORMATS
from repae_jax.interop.vit import export_vit, load_vit
from repae_jax.models.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.sit import SIT_CONFIGS, SiT
from repae_jax.models.vit import ViT, create_vit
from repae_jax.training.build import build_models, state_template
from repae_jax.training.checkpoints import Checkpoints
from repae_jax.training.weights import save_teacher
from repae_jax.training.workdir import claim

VAE = AutoencoderKL(channels=32, multipliers=(1, 2), latent_channels=3, num_res_blocks=1)
TINY = str(pathlib.Path(tiny.__file__))


def blank(shapes):
    """Zeros of these shapes that take no memory, however large the model."""
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)


def random(shapes, seed=0):
    """Float32 numbers of these shapes, positive, so that they may be variances."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32), shapes)


def inspect(path, capsys):
    """What the command prints, as {label: text}; it must succeed without a word on stderr."""
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return dict(line.split(maxsplit=1) for line in output.out.splitlines())


def refused(words, capsys):
    """The one line with which a command refuses, with status 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


def tree(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def numbers(module):
    return sum(p.numel() for p in module.state_dict().values())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory of step 3 with random weights: nothing is compiled, nothing trained."""
    folder = tmp_path_factory.mktemp("recognise") / "run"
    config = tiny.get_config()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = random(state_template(config, build_models(config), sharding))
    claim(folder, config)
    checkpoints = Checkpoints(folder)
    count = np.asarray(3, np.int32)
    adam = jax.tree.map(lambda a: a if a.ndim else count, state.opt_state)
    checkpoints.save(3, state.replace(step=count, opt_state=adam), {"global_next_index": 24})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory):
    """The same as the original's training checkpoint."""
    path = tmp_path_factory.mktemp("original") / "exp" / "checkpoints" / "0000003.pt"
    assert main(["convert", str(run), str(path), "--quiet"]) == 0
    return path


def parts_of(checkpoint, *keys):
    with torch.serialization.safe_globals([argparse.Namespace]):
        whole = torch.load(checkpoint, weights_only=True)
    return {key: whole[key] for key in keys}


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
    assert found["trains"] == "sit, vae, discriminator"
    assert found["SiT"] == SIT_TEXT.format("2 heads")
    assert found["VAE"].endswith("4 x 4 pixels -> 2 channels, widths 4-4-4, 2 groups")
    vae = parts_of(checkpoint, "vae")["vae"]
    values = sum(tensor.numel() for tensor in vae.values())
    assert found["vae"] == f"{len(vae)} tensors: {values} float32"


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


def second_stage(checkpoint, kind):
    """A checkpoint without VAE; REPA's first ones call the blocks behind the encoder otherwise."""
    content = parts_of(checkpoint, "model", "ema", "opt", "steps")
    if kind != "ldm":
        for key in ("model", "ema"):
            kept = {n: t for n, t in content[key].items() if not n.startswith("bn.")}
            first = "blocks.1." if kind == "repa-first" else "-"
            content[key] = {n.replace(first, "decoder_blocks.0."): t for n, t in kept.items()}
    return content


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


def ldm_tensors(dtype=torch.float32):
    peer = parity.randomise(diffusers_vae.make_vae(VAE))
    tensors = diffusers_vae.ldm_names(parity.state_of(peer))
    return {name: torch.tensor(array).to(dtype) for name, array in tensors.items()}


def write_statistics(path, scale=(2.0, 1.0, 0.5), bias=(0.1, -0.2, 0.3)):
    parts = {"latents_scale": scale, "latents_bias": bias}
    torch.save({n: torch.tensor(v).reshape(1, -1, 1, 1) for n, v in parts.items()}, path)


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
    model = SiT(
        latent_size=4, latent_channels=3, patch_size=2, hidden_size=12, depth=1, num_heads=3,
        num_classes=5, encoder_depth=1, teacher_dims=(6, 7), projector_dim=9, qk_norm=True,
    )  # fmt: skip
    tensors = sit.export_sit(random(sit.sit_shapes(model)), model)
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


def f8d4_tensors():
    vae = AutoencoderKL(**VAE_CONFIGS["f8d4"])
    return autoencoder_kl.export_vae(blank(autoencoder_kl.parameter_shapes(vae)), vae, "ldm")


def sit_tensors():
    model = SiT(
        latent_size=32, latent_channels=4, num_classes=1000, encoder_depth=8, teacher_dims=(768,),
        **SIT_CONFIGS["SiT-XL/2"],
    )  # fmt: skip
    return sit.export_sit(blank(sit.sit_shapes(model)), model)


def gan_tensors():
    model = PatchDiscriminator()
    shapes = discriminator.discriminator_shapes(model)
    return discriminator.export_discriminator(blank(shapes), model)


def vit_tensors(name):
    vit = create_vit(name)
    images = jax.ShapeDtypeStruct((1, vit.patch_size, vit.patch_size, 3), np.float32)
    shapes = jax.eval_shape(vit.init, jax.random.key(0), images)
    return export_vit(blank(shapes), vit)


# how the tensors of a published size are made, and what `inspect` calls it
PUBLISHED = {
    "VAE": (f8d4_tensors, "f8d4, 8 x 8 pixels -> 4 channels, widths 128-256-512-512, 32 groups"),
    "SiT": (
        sit_tensors,
        "SiT-XL/2: width 1152, depth 28, 16 heads, patch 2, latents 32 x 32 x 4, "
        "1001 rows of labels, teachers' widths 768",
    ),
    "PatchGAN": (gan_tensors, "3 layers, 64 filters"),
}


def stands_for(tensors, folder, monkeypatch):
    """A file that reads as these tensors without holding them."""
    (folder / "x.pth").touch()
    monkeypatch.setattr(files, "read_stored", lambda path: tensors)
    return folder / "x.pth"


@pytest.mark.parametrize("label", PUBLISHED)
def test_published_sizes_have_their_names(label, tmp_path, monkeypatch, capsys):
    make, text = PUBLISHED[label]
    tensors = make()
    found = inspect(stands_for(tensors, tmp_path, monkeypatch), capsys)
    assert text in found[label]
    values = sum(array.size for array in tensors.values())
    assert f"{values / 1e6:.2f} M float32" in found["weights"]


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("dinov2-b", "dinov2-b"),
        ("dinov2-g", "dinov2-g"),
        ("dinov2-l-reg", "dinov2-l-reg"),
        ("dino-b", "dino-b or mocov3-b"),
        ("mocov3-b", "mocov3-b"),  # by its prefix
        ("mae-l", "mocov3-l or mae-l"),
        ("ijepa-h", "ijepa-h"),
        ("clip-l", "clip-l"),
    ],
)
def test_published_teachers_have_their_names(name, alike, tmp_path, monkeypatch, capsys):
    found = inspect(stands_for(vit_tensors(name), tmp_path, monkeypatch), capsys)
    assert found["teacher"].endswith(f"; arch {alike}")


def test_the_format_is_told_by_content_and_not_by_name(tmp_path):
    write_statistics(tmp_path / "sit-discriminator-vae.pth.tar")
    assert find(tmp_path / "sit-discriminator-vae.pth.tar").format == "statistics"


def test_a_deep_vit_is_known(tmp_path, capsys):
    files.write_torch(tmp_path / "x.pth", timm_names(depth=12))
    assert "depth 12," in inspect(tmp_path / "x.pth", capsys)["teacher"]


class Hostile:
    """Unpickled carelessly, this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def a_text(path):
    path.write_text("not a file of weights\n")


def a_config(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)


NETWORKS = {"model": {}, "ema": {}, "opt": {}, "steps": 3}
# name in the folder -> (who makes it there, what the line says of it)
UNKNOWN = {
    "empty.pt": (lambda p: torch.save({}, p), "holds nothing"),
    "other.pt": (
        lambda p: torch.save({f"conv{i}.weight": torch.ones(2) for i in range(5)}, p),
        "holds 'conv0.weight', 'conv1.weight', 'conv2.weight' and 2 more",
    ),
    "other.safetensors": (
        lambda p: files.write_safetensors(p, {"x": np.ones(3)}), "holds 'x', which is no format"
    ),
    "nested.pt": (lambda p: torch.save({"state_dict": {"x": torch.ones(2)}}, p), "'state_dict'"),
    "numbered.pt": (lambda p: torch.save({0: torch.ones(2)}, p), "holds 0 where the name"),
    "numbered_inside.pt": (
        lambda p: torch.save({"state_dict": {0: torch.ones(2)}}, p), "holds 0 where the name"
    ),
    "plain.pt": (
        lambda p: torch.save({"latents_scale": 3, "latents_bias": "x"}, p), "'latents_scale'"
    ),
    "list.pt": (lambda p: torch.save([torch.ones(2)], p), "holds a list"),
    "tensor.pt": (lambda p: torch.save(torch.ones(2), p), "not a dict of tensors"),
    "parts.pt": (lambda p: torch.save(NETWORKS | {"model": 3}, p), "'model' is no dict"),
    "optimizer.pt": (lambda p: torch.save(NETWORKS | {"opt": None}, p), "'opt' is no dict"),
    "no_ema.pt": (
        lambda p: torch.save({k: v for k, v in NETWORKS.items() if k != "ema"}, p),
        "'ema' is missing",
    ),
    "no_discriminator.pt": (
        lambda p: torch.save(NETWORKS | {"vae": {}, "opt_vae": {}}, p), "'discriminator' is missing"
    ),
    "script.pt": (
        lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p), "TorchScript"
    ),
    "text.pt": (a_text, "not a readable"),
    "text.safetensors": (a_text, "not a readable safetensors file"),
    "weights.onnx": (a_text, "expected a file .safetensors"),
    "nothing.pt": (lambda p: None, "no such file or folder"),
    "folder": (pathlib.Path.mkdir, "neither config.json (diffusers, transformers, a run) nor"),
    "unet": (lambda p: a_config(p, '{"_class_name": "UNet2DModel"}'), "is of a 'UNet2DModel'"),
    "bert": (lambda p: a_config(p, '{"model_type": "bert"}'), "is of a 'bert'"),
    "nobody": (lambda p: a_config(p, "{}"), "names neither _class_name"),
    "damaged": (lambda p: a_config(p, "{"), "config.json is damaged"),
    "array": (lambda p: a_config(p, "[]"), "holds a list"),
    "vae_alone": (
        lambda p: a_config(p, '{"_class_name": "AutoencoderKL"}'), "no weights beside config.json"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_is_one_line(name, tmp_path, capsys):
    make, message = UNKNOWN[name]
    make(tmp_path / name)
    before = tree(tmp_path)
    for words in (["inspect", tmp_path / name], ["convert", tmp_path / name, tmp_path / "target"]):
        line = refused(words, capsys)
        assert str(tmp_path / name) in line
        assert message in line
        assert tree(tmp_path) == before


def test_damaged_networks_are_no_tracebacks(tmp_path, capsys):
    """Names as they should be, shapes as they cannot be."""
    names = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "sit.pt")
    assert inspect(tmp_path / "sit.pt", capsys)["SiT"].startswith("damaged")
    torch.save({"x_embedder.proj.weight": torch.ones(2, 3, 2, 2), "pos_embed": torch.ones(1, 4, 2)},
               tmp_path / "short.pt")  # fmt: skip
    assert (
        "tensor 'y_embedder.embedding_table.weight' is missing"
        in (inspect(tmp_path / "short.pt", capsys)["SiT"])
    )
    broken = {n: torch.ones(2) for n in timm_names()}
    torch.save(broken, tmp_path / "vit.pt")
    assert inspect(tmp_path / "vit.pt", capsys)["teacher"].startswith("damaged")
    torch.save({"main.0.weight": torch.tensor(1.0)}, tmp_path / "gan.pt")
    assert inspect(tmp_path / "gan.pt", capsys)["weights"] == "1 tensors: 1 float32"
    torch.save({"encoder.down.0.block.0.conv1.weight": torch.ones(2)}, tmp_path / "vae.pt")
    assert "has the wrong rank" in refused(["inspect", tmp_path / "vae.pt"], capsys)


def in_folder(config, name):
    def write(content, path):
        folder = path.with_suffix("")
        a_config(folder, config)
        torch.save(content, folder / name)
        return folder

    return write


def in_experiment(content, path):
    checkpoint = path.with_suffix("") / "checkpoints" / "0000003.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save(content, checkpoint)
    return checkpoint.parent.parent


def as_a_file(content, path):
    torch.save(content, path)
    return path


def as_an_old_file(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def as_a_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


HIDDEN = {
    "file": as_a_file,
    "old file": as_an_old_file,
    "pickle": as_a_pickle,
    "transformers": in_folder('{"model_type": "dinov2"}', "pytorch_model.bin"),
    "diffusers": in_folder('{"_class_name": "AutoencoderKL"}', "diffusion_pytorch_model.bin"),
    "experiment": in_experiment,
}


@pytest.mark.parametrize("how", HIDDEN)
def test_code_in_a_file_does_not_run(how, tmp_path, capsys):
    trace = tmp_path / "executed"
    # beside a tensor that would be recognised, so that nothing but the pickle is in the way
    content = {"x": Hostile(trace), "main.0.weight": torch.ones(2)}
    path = HIDDEN[how](content, tmp_path / "hostile.pt")
    before = tree(tmp_path)
    for words in (["inspect", path], ["convert", path, tmp_path / "target.safetensors"]):
        line = refused(words, capsys)
        assert str(path) in line
        assert "mkdir in it is code, and not run" in line
        assert tree(tmp_path) == before
    assert not trace.exists()


@pytest.fixture(scope="module")
def sources(run, checkpoint, tmp_path_factory):
    """One file or folder of several formats."""
    folder = tmp_path_factory.mktemp("sources")
    parts = parts_of(checkpoint, "model", "discriminator")
    torch.save(parts["model"], folder / "sit.pt")
    torch.save(parts["discriminator"], folder / "discriminator.pt")
    torch.save(second_stage(checkpoint, "repa"), folder / "repa.pt")
    torch.save(ldm_tensors(), folder / "vae.pt")
    write_statistics(folder / "statistics.pt")
    parity.randomise(diffusers_vae.make_vae(VAE)).save_pretrained(folder / "diffusers")
    names = {path.stem: path for path in folder.iterdir()}
    return names | {"run": run, "repae": checkpoint}


@pytest.mark.parametrize(
    ("source", "to", "possible"),
    [
        ("discriminator", "diffusers", "file"),
        ("discriminator", "vae", "file"),
        ("sit", "vae", "run, file"),
        ("sit", "checkpoint", "run, file"),
        ("statistics", "diffusers", "file"),
        ("vae", "run", "diffusers, vae"),
        ("vae", "file", "diffusers, vae"),
        ("diffusers", "checkpoint", "diffusers, vae"),
        ("repa", "diffusers", "run"),
        ("repa", "checkpoint", "run"),
        ("repae", "checkpoint", "run, diffusers, vae"),
        ("run", "run", "checkpoint, diffusers, vae"),
        ("run", "file", "checkpoint, diffusers, vae"),
    ],
)
def test_the_wrong_family_is_named(source, to, possible, sources, tmp_path, capsys):
    target = tmp_path / ("x.pt" if to in ("vae", "file", "checkpoint") else "x")
    line = refused(["convert", sources[source], target, "--to", to], capsys)
    assert f"{sources[source]} ({FORMATS[source]}) does not become {to!r}" in line
    assert line.endswith(f"it can: {possible}\n")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("source", ["discriminator", "sit", "statistics", "repa"])
@pytest.mark.parametrize("command", ["train", "convert"])
def test_another_network_as_the_vae_is_named(command, source, sources, tmp_path, capsys):
    words = ["--config", f"{TINY}:repa", f"--config.vae.weights={sources[source]}", "--quiet"]
    if command == "train":
        words = ["train", *words, "--workdir", tmp_path / "run"]
        model = ViT(patch_size=8, native_grid=4, dim=8, depth=1, num_heads=2)
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        params = random(jax.eval_shape(model.init, jax.random.key(0), images))["params"]
        teacher = tmp_path.parent / f"{tmp_path.name}_teacher.safetensors"
        save_teacher(str(teacher), params, {})
        words.append(f"--config.teachers.small.weights={teacher}")
    else:
        words = ["convert", sources["repa"], tmp_path / "run", *words]
    line = refused(words, capsys)
    assert f"{sources[source]}: not the weights of an AutoencoderKL" in line
    if command == "convert":
        assert tree(tmp_path) == set()


CHECKPOINT = "'checkpoint' writes a file whose name ends in .pt or .pth"
ANY_FILE = "{!r} writes a file whose name ends in .pt, .pth or .safetensors"
FOLDER = "{!r} writes a folder, whose name does not end in '.pt'"


@pytest.mark.parametrize(
    ("source", "name", "to", "message"),
    [
        ("run", "x.onnx", None, CHECKPOINT),
        ("run", "x.safetensors", None, CHECKPOINT),
        ("run", "x", "checkpoint", CHECKPOINT),
        ("run", "x.pt", "diffusers", FOLDER.format("diffusers")),
        ("repae", "x.pt", "run", FOLDER.format("run")),
        ("vae", "x.bin", None, ANY_FILE.format("vae")),
        ("vae", "x", "vae", ANY_FILE.format("vae")),
        ("sit", "x.ckpt", None, ANY_FILE.format("file")),
        ("sit", "x", "file", ANY_FILE.format("file")),
    ],
)
def test_the_targets_name_must_fit(source, name, to, message, sources, tmp_path, capsys):
    words = ["convert", sources[source], tmp_path / name, *(["--to", to] if to else [])]
    line = refused(words, capsys)
    assert f"{tmp_path / name}: {message}" in line
    assert tree(tmp_path) == set()


def test_a_folder_may_have_a_number_in_its_name(sources, tmp_path):
    assert main(["convert", str(sources["vae"]), str(tmp_path / "e2e-sd3.5-vae")]) == 0
    assert find(tmp_path / "e2e-sd3.5-vae").format == "diffusers"


TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_other_container_and_back(dtype, tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 4, generator=generator)
    tensors = {
        "main.0.weight": values.to(dtype),
        "main.0.bias": values.t().to(dtype),  # not contiguous
        "main.3.num_batches_tracked": torch.tensor(7),
        "main.5.weight": torch.zeros(0, 3, dtype=dtype),
    }
    if dtype.is_floating_point:  # bits that arithmetic would not keep
        odd = torch.tensor([-0.0, float("inf"), float("nan"), torch.finfo(dtype).tiny / 2])
        tensors["main.6.bias"] = odd.to(dtype)
    names = [tmp_path / name for name in ("one.pt", "two.safetensors", "three.pt", "four.pth")]
    torch.save(tensors, names[0])
    for source, target in itertools.pairwise(names):
        assert main(["convert", str(source), str(target)]) == 0
    with safe_open(names[1], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # which transformers asks for
        middle = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for content in (middle, *(torch.load(name, weights_only=True) for name in names[2:])):
        assert set(content) == set(tensors)
        for name, tensor in tensors.items():
            assert (content[name].dtype, content[name].shape) == (tensor.dtype, tensor.shape), name
            raw = (t.contiguous().reshape(-1).view(torch.uint8) for t in (content[name], tensor))
            assert torch.equal(*raw), name
    assert inspect(names[1], capsys)["weights"] == inspect(names[0], capsys)["weights"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vae_in_the_other_container_and_back(dtype, tmp_path, capsys):
    tensors = ldm_tensors(dtype)
    one, two, three = (tmp_path / name for name in ("one.pt", "two.safetensors", "three.pt"))
    torch.save(tensors, one)
    write_statistics(tmp_path / "one-latents-stats.pt")
    capsys.readouterr()
    assert main(["convert", str(one), str(two)]) == 0
    assert capsys.readouterr().out == (
        f"{two}: the VAE under LDM's names, beside it two-latents-stats.pt\n"
    )
    assert main(["convert", str(two), str(three)]) == 0
    numpy = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16}.get(dtype, np.float32)
    assert {array.dtype for array in files.read_stored(two).values()} == {np.dtype(numpy)}
    for path, expected in (
        (three, tensors),
        (tmp_path / "three-latents-stats.pt", torch.load(tmp_path / "one-latents-stats.pt")),
    ):
        actual = torch.load(path, weights_only=True)
        assert set(actual) == set(expected)
        for name, tensor in expected.items():
            assert actual[name].dtype == tensor.dtype
            assert torch.equal(actual[name], tensor), name


def test_what_stands_beside_the_target_stays(sources, run, tmp_path, capsys):
    for path, source in (("x-latents-stats.pt", run), ("x-discriminator-ckpt.pt", run)):
        (tmp_path / path).write_bytes(b"precious")
        line = refused(["convert", source, tmp_path / "x.safetensors", "--to", "vae"], capsys)
        assert f"{tmp_path / path} exists already" in line
        assert tree(tmp_path) == {path}
        assert (tmp_path / path).read_bytes() == b"precious"
        (tmp_path / path).unlink()
    # but a VAE's own statistics serve both containers of it
    shutil.copy(sources["vae"], tmp_path / "v.pt")
    write_statistics(tmp_path / "v-latents-stats.pt")
    before = (files.read_stored(tmp_path / "v-latents-stats.pt"))["latents_scale"].tobytes()
    assert main(["convert", str(tmp_path / "v.pt"), str(tmp_path / "v.safetensors")]) == 0
    after = files.read_stored(tmp_path / "v-latents-stats.pt")["latents_scale"].tobytes()
    assert after == before


def test_other_groups_need_a_file_that_tells_them(run, tmp_path, capsys):
    line = refused(["convert", run, tmp_path / "x.pt", "--to", "vae"], capsys)
    assert "groups and not the usual 32" in line
    assert tree(tmp_path) == set()
    assert main(["convert", str(run), str(tmp_path / "x.safetensors"), "--to", "vae"]) == 0
    assert inspect(tmp_path / "x.safetensors", capsys)["VAE"].endswith(", 2 groups")
    written = {"x.safetensors", "x-latents-stats.pt", "x-discriminator-ckpt.pt"}
    assert tree(tmp_path) == written


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_help_names_the_formats(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for word in ("work directory", "training checkpoint", "REPA", "LDM", "diffusers", "teacher",
                 "LPIPS", "hf://owner/name"):  # fmt: skip
        assert word in text, word
