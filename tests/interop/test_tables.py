"""Every table of the frozen networks and the discriminator: exact in both directions, and loud."""

import re

import numpy as np
import pytest
from exported import export_discriminator, export_lpips, export_vit

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.interop.lpips import load_lpips
from repae_jax.interop.vit import load_vit
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.lpips import LPIPS

DIM, PATCH, GRID, DEPTH = 12, 2, 3, 11  # from ten blocks on a number has two digits
HIDDEN, GATED = 48, 32  # two thirds of 48 are a multiple of 8
WIDTHS = (3, 4, 5, 6, 7)
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
SLICES = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)


def random(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def authors(swiglu, registers):
    shapes = {"cls_token": (1, 1, DIM), "pos_embed": (1, 1 + GRID**2, DIM)}
    shapes |= {"patch_embed.proj.weight": (DIM, 3, PATCH, PATCH), "patch_embed.proj.bias": (DIM,)}
    shapes |= norm("norm", DIM)
    if registers:
        shapes["register_tokens"] = (1, registers, DIM)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", DIM) | norm(f"{block}.norm2", DIM)
        shapes |= {f"{block}.ls1.gamma": (DIM,), f"{block}.ls2.gamma": (DIM,)}
        shapes |= linear(f"{block}.attn.qkv", DIM, 3 * DIM) | linear(f"{block}.attn.proj", DIM, DIM)
        if swiglu:
            shapes |= linear(f"{block}.mlp.w12", DIM, 2 * GATED)
            shapes |= linear(f"{block}.mlp.w3", GATED, DIM)
        else:
            shapes |= linear(f"{block}.mlp.fc1", DIM, HIDDEN) | linear(
                f"{block}.mlp.fc2", HIDDEN, DIM
            )
    return random(shapes) | {"mask_token": np.zeros((1, DIM), np.float32)}


def transformers_names(tensors, version):
    """The same weights as Hugging Face's files (4) or the modules of transformers 5 hold them."""
    fixed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    qkv = {4: "attention.attention.{}", 5: "attention.{}_proj"}[version]
    qkv = [qkv.format(n) for n in {4: ("query", "key", "value"), 5: ("q", "k", "v")}[version]]
    parts = {
        "attn.qkv": qkv,
        "attn.proj": [{4: "attention.output.dense", 5: "attention.o_proj"}[version]],
        "mlp.w12": {4: ["mlp.weights_in"], 5: ["mlp.gate_proj", "mlp.up_proj"]}[version],
        "mlp.w3": [{4: "mlp.weights_out", 5: "mlp.down_proj"}[version]],
    }
    renamed = {}
    for name, array in tensors.items():
        if name in fixed:
            renamed[fixed[name]] = array
            continue
        _, i, rest = name.split(".", 2)
        rest = re.sub(r"ls(\d).gamma", r"layer_scale\1.lambda1", rest)
        stem, _, kind = rest.rpartition(".")
        new = parts.get(stem, [stem])
        for part, piece in zip(new, np.split(array, len(new)), strict=True):
            renamed[f"encoder.layer.{i}.{part}.{kind}"] = piece
    return renamed


def vit(swiglu, registers):
    return ViT(PATCH, GRID, DIM, DEPTH, 2, swiglu=swiglu, num_registers=registers)


def vgg(naming):
    shapes, channels = {}, 3
    for n, j in zip(VGG16, SLICES, strict=True):
        name = f"features.{n}" if naming == "torchvision" else f"net.slice{j}.{n}"
        width = WIDTHS[j - 1]
        shapes |= {f"{name}.weight": (width, channels, 3, 3), f"{name}.bias": (width,)}
        channels = width
    shapes |= {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(WIDTHS)}
    tensors = random(shapes)
    if naming == "module":
        shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
        tensors["scaling_layer.shift"] = np.array(shift, np.float32).reshape(1, 3, 1, 1)
        tensors["scaling_layer.scale"] = np.array(scale, np.float32).reshape(1, 3, 1, 1)
    return tensors


def discriminator():
    shapes = {"main.0.weight": (2, 3, 4, 4), "main.0.bias": (2,)}
    for n, n_in, n_out in ((2, 2, 4), (5, 4, 8), (8, 8, 16)):
        shapes[f"main.{n}.weight"] = (n_out, n_in, 4, 4)
        shapes |= norm(f"main.{n + 1}", n_out)
        shapes |= {f"main.{n + 1}.running_{s}": (n_out,) for s in ("mean", "var")}
    return random(shapes | {"main.11.weight": (1, 16, 4, 4), "main.11.bias": (1,)})


def families():
    """name -> (tensors, load, export)."""
    found = {}
    for swiglu, registers in ((False, 0), (True, 2)):
        model = vit(swiglu, registers)
        by_naming = {"authors": authors(swiglu, registers)}
        by_naming["transformers"] = transformers_names(by_naming["authors"], 4)
        by_naming["transformers5"] = transformers_names(by_naming["authors"], 5)
        for naming, tensors in by_naming.items():
            found[f"dinov2-{naming}-{'swiglu-registers' if swiglu else 'mlp'}"] = (
                tensors,
                lambda t, model=model: load_vit(t, model, "FILE"),
                lambda v, model=model, naming=naming: export_vit(v, model, naming),
            )
    for naming in ("torchvision", "module"):
        found[f"lpips-{naming}"] = (
            vgg(naming),
            lambda t: load_lpips(t, LPIPS(rescale_inputs=False, widths=WIDTHS), source="FILE"),
            lambda v, naming=naming: export_lpips(v, naming),
        )
    patch_gan = PatchDiscriminator(filters=2)
    found["discriminator"] = (
        discriminator(),
        lambda t: load_discriminator(t, patch_gan, source="FILE"),
        lambda v: export_discriminator(v, patch_gan),
    )
    return found


FAMILIES = families()


@pytest.mark.parametrize("family", FAMILIES)
def test_import_then_export_is_the_identity(family):
    tensors, load, export = FAMILIES[family]
    exported = export(load(tensors))
    assert set(exported) == set(tensors)
    for name, array in tensors.items():
        assert exported[name].dtype == np.float32
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_tensors_are_named(family):
    tensors, load, _ = FAMILIES[family]
    constant = ("mask_token", "embeddings.mask_token", "scaling_layer.shift", "scaling_layer.scale")
    # a few only: each costs a trace of the model
    names = [name for name in tensors if name not in constant]
    for name in [*names[1 : len(names) : max(len(names) // 3, 1)], names[-1]]:
        short = {n: a for n, a in tensors.items() if n != name}
        with pytest.raises(UserError, match=rf"FILE: tensor '{re.escape(name)}' is missing"):
            load(short)
        wrong = {**tensors, name: np.zeros((*tensors[name].shape, 2), np.float32)}
        shape = re.escape(str(wrong[name].shape))
        with pytest.raises(UserError, match=rf"FILE: tensor '{re.escape(name)}' has shape {shape}"):
            load(wrong)
    with pytest.raises(UserError, match=r"FILE: unexpected tensor 'head.weight'"):
        load({**tensors, "head.weight": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("swiglu", [False, True])
def test_the_namings_of_dinov2_give_the_same_weights(swiglu):
    tensors, model = authors(swiglu, 2), vit(swiglu, 2)
    expected = tables.flatten(load_vit(tensors, model))
    for version in (4, 5):
        actual = tables.flatten(load_vit(transformers_names(tensors, version), model))
        assert set(actual) == set(expected)
        for path, array in expected.items():
            np.testing.assert_array_equal(actual[path], array, err_msg=path)


def test_the_mask_token_is_left_out_whether_it_is_there_or_not():
    tensors, model = authors(False, 0), vit(False, 0)
    without = {name: a for name, a in tensors.items() if name != "mask_token"}
    tensors["mask_token"] = np.ones((1, DIM), np.float32)
    assert set(tables.flatten(load_vit(tensors, model))) == set(
        tables.flatten(load_vit(without, model))
    )


def test_what_nothing_reads_is_left_out():
    vgg16 = vgg("torchvision") | {"classifier.0.weight": np.zeros((4, 4), np.float32)}
    load_lpips(vgg16, LPIPS(rescale_inputs=True, widths=WIDTHS))
    counted = discriminator() | {"main.3.num_batches_tracked": np.array(7)}
    loaded = load_discriminator(counted, PatchDiscriminator(filters=2))
    assert not any("tracked" in path for path in tables.flatten(loaded))


def test_foreign_files_are_told_apart():
    foreign = {"model.weight": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"FILE: .*DINOv2.*'pos_embed' or 'embeddings.position_emb"):
        load_vit(foreign, vit(False, 0), "FILE")
    with pytest.raises(UserError, match=r"FILE: .*LPIPS.*vgg\.pth"):
        load_lpips(foreign, LPIPS(rescale_inputs=False, widths=WIDTHS), source="FILE")


def test_registers_of_the_file_and_of_the_model_must_agree():
    with pytest.raises(UserError, match=r"unexpected tensor 'register_tokens'"):
        load_vit(authors(False, 2), vit(False, 0))
    with pytest.raises(UserError, match=r"'register_tokens' is missing"):
        load_vit(authors(False, 0), vit(False, 2))
