"""The files of every teacher beside DINOv2: read, checked, and named again as they were."""

import re

import numpy as np
import pytest
import torch
from exported import export_vit
from torch_vits import DIM, GRID, HEADS, PATCH, saved_by, small, transformers_reference

from repae_jax.config import teacher
from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.files import write_safetensors, write_torch
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import create_vit
from repae_jax.runs.weights import load_teacher

DEPTH = 2
MISNAMED_DEPTH = 15  # the published MoCo v3 ViT-L misnames tensors of the blocks 13 and 14


def random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def timm_names(depth=DEPTH, class_token=True):
    """A ViT as timm and most authors name it."""
    shapes = {"cls_token": (1, 1, DIM)} if class_token else {}
    shapes["pos_embed"] = (1, int(class_token) + GRID**2, DIM)
    shapes |= affine("patch_embed.proj", DIM, 3, PATCH, PATCH)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= affine(f"{block}.norm1", DIM) | affine(f"{block}.attn.qkv", 3 * DIM, DIM)
        shapes |= affine(f"{block}.attn.proj", DIM, DIM) | affine(f"{block}.norm2", DIM)
        shapes |= affine(f"{block}.mlp.fc1", 4 * DIM, DIM)
        shapes |= affine(f"{block}.mlp.fc2", DIM, 4 * DIM)
    return random(shapes | affine("norm", DIM))


def openai_tower(width, depth):
    shapes = {}
    for i in range(depth):
        block = f"transformer.resblocks.{i}"
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        shapes |= affine(f"{block}.attn.out_proj", width, width)
        shapes |= affine(f"{block}.ln_1", width) | affine(f"{block}.ln_2", width)
        shapes |= affine(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= affine(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def openai_visual():
    shapes = {"class_embedding": (DIM,), "positional_embedding": (1 + GRID**2, DIM)}
    shapes |= {"proj": (DIM, 8), "conv1.weight": (DIM, 3, PATCH, PATCH)}
    shapes |= affine("ln_pre", DIM) | openai_tower(DIM, DEPTH) | affine("ln_post", DIM)
    return random(shapes)


def openai_clip():
    text = {"positional_embedding": (5, 8), "text_projection": (8, 8), "logit_scale": ()}
    text |= {"input_resolution": (), "context_length": (), "vocab_size": ()}
    text |= openai_tower(8, DEPTH + 1) | affine("ln_final", 8)
    return random(text | {"token_embedding.weight": (7, 8)}, 1) | prefixed(
        "visual.", openai_visual()
    )


def transformers_clip():
    """The whole model, image and text tower."""
    from transformers import CLIPConfig, CLIPModel

    sizes = dict(num_hidden_layers=DEPTH, num_attention_heads=HEADS, hidden_size=DIM)
    vision = dict(intermediate_size=4 * DIM, image_size=PATCH * GRID, patch_size=PATCH)
    text = dict(vocab_size=7, max_position_embeddings=5, bos_token_id=0, eos_token_id=1)
    config = CLIPConfig(vision_config=sizes | vision, text_config=sizes | text, projection_dim=8)
    return saved_by(CLIPModel(config))


def transformers_mae():
    """With the decoder, as it is pre-trained and published."""
    from transformers import ViTMAEForPreTraining

    config = transformers_reference("mae-l").module.config
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        setattr(config, f"decoder_{key}", getattr(config, key))
    return saved_by(ViTMAEForPreTraining(config))


def prefixed(prefix, tensors):
    return {prefix + name: array for name, array in tensors.items()}


HEAD = {"head.0.weight": np.ones((4, 4), np.float32)}


def dino_checkpoint():
    student = {**prefixed("module.backbone.", timm_names()), **prefixed("module.", HEAD)}
    teacher = {**prefixed("backbone.", timm_names()), **HEAD}
    return {"student": student, "teacher": teacher, "epoch": 100}


def mocov3_checkpoint(depth=DEPTH):
    encoder = prefixed("module.base_encoder.", timm_names(depth) | HEAD)
    momentum = {name: a + 1 for name, a in timm_names(depth).items()}
    other = prefixed("module.momentum_encoder.", momentum) | prefixed("module.predictor.", HEAD)
    return {"epoch": 300, "arch": "vit_large", "state_dict": encoder | other}


def ijepa_checkpoint():
    encoder = prefixed("module.", timm_names(class_token=False))
    target = {name: a + 1 for name, a in encoder.items()}
    return {"encoder": encoder, "target_encoder": target, "predictor": HEAD, "epoch": 300}


def transformers_model(preset):
    return lambda: saved_by(transformers_reference(preset).module)


DECODER = {"mask_token": np.ones((1, 1, 8), np.float32)} | random(affine("decoder_embed", 8, DIM))
BASE, VIT, VISION = "module.base_encoder.", "vit.", "vision_model."

# kind of file -> (preset, how it is made, where the tensors lie in it, naming, prefix in the file)
FILES = {
    "dino": ("dino-b", timm_names, None, "authors", ""),
    "dino checkpoint": ("dino-b", dino_checkpoint, "teacher", "authors", "backbone."),
    "dino transformers": ("dino-b", transformers_model("dino-b"), None, "transformers", ""),
    "mocov3": ("mocov3-b", mocov3_checkpoint, "state_dict", "authors", BASE),
    "mocov3 backbone": ("mocov3-b", timm_names, None, "authors", ""),
    "mae": ("mae-l", lambda: {"model": timm_names()}, "model", "authors", ""),
    "mae decoder": ("mae-l", lambda: {"model": timm_names() | DECODER}, "model", "authors", ""),
    "mae transformers": ("mae-l", transformers_mae, None, "transformers", VIT),
    "ijepa": ("ijepa-h", ijepa_checkpoint, "encoder", "authors", "module."),
    "ijepa transformers": ("ijepa-h", transformers_model("ijepa-h"), None, "transformers", ""),
    "clip": ("clip-l", openai_clip, None, "authors", "visual."),
    "clip visual": ("clip-l", openai_visual, None, "authors", ""),
    "clip transformers": ("clip-l", transformers_clip, None, "transformers", VISION),
    "clip transformers visual": ("clip-l", transformers_model("clip-l"), None, "transformers", ""),
}
# what a model does not use of its own network: heads, decoders, norms behind its tokens
UNUSED = {
    "dino transformers": r"pooler\..*",
    "mocov3": r"head\..*",
    "mae": r"norm\..*",
    "mae decoder": r"norm\..*|mask_token|decoder_.*",
    "mae transformers": r"layernorm\..*",
    "ijepa transformers": r"pooler\..*",
    "clip": r"ln_post\..*|proj",
    "clip visual": r"ln_post\..*|proj",
    "clip transformers": r"post_layernorm\..*",
    "clip transformers visual": r"post_layernorm\..*",
}


def opened(kind):
    """(model, content, its tensors, naming, prefix)."""
    preset, make, inside, naming, prefix = FILES[kind]
    content = make()
    return small(preset), content, content[inside] if inside else content, naming, prefix


@pytest.mark.parametrize("kind", FILES)
def test_import_then_export_is_the_identity(kind):
    model, content, tensors, naming, prefix = opened(kind)
    exported = export_vit(load_vit(content, model), model, naming, marked=False)
    published = prefixed_as(kind, naming)
    own = {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
    used = {n: a for n, a in own.items() if not re.fullmatch(UNUSED.get(kind, "-"), n)}
    assert set(exported) == {published + name for name in used}
    for name, array in used.items():
        np.testing.assert_array_equal(exported[published + name], array, err_msg=name)


def prefixed_as(kind, naming):
    """What the published files of this family have in front of every name."""
    family = kind.split()[0]
    return {
        ("mocov3", "authors"): BASE,
        ("mae", "transformers"): VIT,
        ("ijepa", "authors"): "module.",
        ("clip", "authors"): "visual.",
        ("clip", "transformers"): VISION,
    }.get((family, naming), "")


@pytest.mark.parametrize("kind", ["dino", "mocov3", "mae transformers", "ijepa", "clip"])
def test_bad_tensors_are_named(kind):
    model, content, tensors, _, prefix = opened(kind)
    name = next(n for n in tensors if re.match(rf"{prefix}.*\b1\.(mlp|output)", n))
    array = tensors.pop(name)
    with pytest.raises(UserError, match=rf"FILE: tensor '{re.escape(name)}' is missing"):
        load_vit(content, model, "FILE")
    tensors[name] = array[..., None]
    shape = re.escape(str(tensors[name].shape))
    with pytest.raises(UserError, match=rf"FILE: tensor '{re.escape(name)}' has shape {shape}"):
        load_vit(content, model, "FILE")
    tensors[name] = array
    tensors[f"{prefix}other.weight"] = array
    with pytest.raises(UserError, match=rf"FILE: unexpected tensor '{re.escape(prefix)}other"):
        load_vit(content, model, "FILE")


def test_tensors_beside_the_network_that_nobody_knows_are_named():
    model, content, tensors, _, _ = opened("mocov3")
    tensors["module.classifier.weight"] = np.ones(3, np.float32)
    with pytest.raises(UserError, match="unexpected tensor 'module.classifier.weight'"):
        load_vit(content, model)


@pytest.mark.parametrize(
    ("kind", "preset", "message"),
    [
        ("mocov3", "mae-l", "the weights of MoCo v3, but the model is MAE's"),
        ("mae", "mocov3-b", "the weights of MAE, but the model is MoCo v3's"),
        ("mae", "dino-b", "the weights of MAE, but the model is DINO's"),
        ("ijepa", "dino-b", "the weights of I-JEPA, but the model is DINO's"),
        ("clip", "dino-b", "the weights of CLIP, but the model is DINO's"),
        ("mae transformers", "clip-l", "the weights of MAE, but the model is CLIP's"),
        ("dino checkpoint", "dinov2-b", "the weights of DINO, but the model is DINOv2's"),
        ("dino transformers", "dinov2-b", "the weights of DINO, but the model is DINOv2's"),
        # the same names, so by their tensors only
        ("dino", "dinov2-b", "tensor 'blocks.0.ls1.gamma' is missing"),
        ("dino", "ijepa-h", "unexpected tensor 'cls_token'"),
    ],
)
def test_another_familys_file_is_refused(kind, preset, message):
    _, content, *_ = opened(kind)
    with pytest.raises(UserError) as caught:
        load_vit(content, small(preset), "FILE")
    assert message in str(caught.value)
    assert str(caught.value).startswith("FILE: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["dino-b", "mocov3-b", "mae-l", "ijepa-h", "clip-l"])
def test_what_is_no_vit_is_refused_by_the_names_that_it_lacks(preset):
    foreign = {"model": {"conv.weight": np.zeros(3, np.float32)}, "epoch": 3}
    with pytest.raises(UserError, match=r"FILE: not the weights of .*: it has no tensor '.*pos"):
        load_vit(foreign, small(preset), "FILE")


def test_the_misnamed_tensors_of_moco_v3_are_found():
    model = small("mocov3-l", depth=MISNAMED_DEPTH)
    content = mocov3_checkpoint(MISNAMED_DEPTH)
    expected = tables.flatten(load_vit(content, model))
    tensors = content["state_dict"]
    for right, wrong in (
        ("blocks.13.norm1.", "blocks.13.norm13."),
        ("blocks.13.mlp.fc1.", "blocks.13.mlp.fc13."),
        ("blocks.14.norm2.", "blocks.14.norm14."),
        ("blocks.14.mlp.fc2.", "blocks.14.mlp.fc14."),
    ):
        for kind in ("weight", "bias"):
            name = f"module.base_encoder.{right}{kind}"
            tensors[name.replace(right, wrong)] = tensors.pop(name)
    actual = tables.flatten(load_vit(content, model))
    assert set(actual) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(actual[path], array, err_msg=path)


def test_the_final_norm_is_read_where_the_model_has_one():
    tensors = timm_names()
    loaded = load_vit({"model": tensors}, small("mae-l", final_norm=True))["params"]
    np.testing.assert_array_equal(loaded["norm"]["scale"], tensors["norm.weight"])
    assert "norm" not in load_vit({"model": tensors}, small("mae-l"))["params"]


@pytest.mark.parametrize("kind", ["mocov3", "clip transformers"])
def test_teachers_are_read_from_files(kind, tmp_path):
    model, content, *_ = opened(kind)
    path = tmp_path / ("teacher.safetensors" if "transformers" in kind else "teacher.pth")
    (write_safetensors if "transformers" in kind else write_torch)(path, content)
    actual = tables.flatten(load_teacher(teacher(weights=str(path)), model, 32))
    expected = tables.flatten(load_vit(content, model))
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_openais_archive_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match=r"ViT-L-14.pt: .*clip-vit-large-patch14") as caught:
        load_teacher(teacher(weights=str(path)), create_vit("clip-l"), 32)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="TorchScript"):
        load_teacher(teacher(weights=str(path)), create_vit("mae-l"), 32)
