"""The original's teachers, small and with random weights, from a checkout of it.

What runs is its own code: `load_encoders`, `preprocess_raw_image`, and the statements of its
training loop that turn pixels into tokens. Only the sizes are ours, and where files come from.
"""

import ast
import contextlib
import functools
import importlib.util
import pathlib
import sys
import types
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest
import torch
from checkouts import parsed
from parity import ORIGINAL, SKIP_REASON, original_module, randomise, state_of

NEEDS_ORIGINAL = pytest.mark.skipif(
    not ORIGINAL or not importlib.util.find_spec("timm"), reason=SKIP_REASON
)
DIM, HEADS, DEPTH = 16, 2, 2
MOCO_DEPTH = 15  # the published file misnames tensors of the blocks 13 and 14
SIZES = dict(embed_dim=DIM, num_heads=HEADS, depth=DEPTH)
NAMES = {
    "mocov3-b": "mocov3-vit-b",
    "mae-l": "mae-vit-l",
    "ijepa-h": "jepa-vit-h",
    "clip-l": "clip-vit-L",
}


def original_preset(preset: str) -> torch.nn.Module:
    """A teacher of the published size from the original's own builder, without memory."""
    moco, mae, jepa = _modules()
    builders = {
        "mocov3-s": moco.vit_small,
        "mocov3-b": moco.vit_base,
        "mocov3-l": moco.vit_large,
        "mae-l": functools.partial(mae.vit_large_patch16, img_size=256),
        "ijepa-h": functools.partial(jepa.vit_huge, img_size=[224, 224], patch_size=14),
    }
    # I-JEPA's builder reads numbers from a tensor, and so needs that one to exist
    real = mock.patch.object(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with real, torch.device("meta"):
        return builders[preset]()


def file_of(preset: str) -> dict:
    """Random weights as the preset's authors publish them, tensors and all that lies around."""
    content = {
        "mocov3-b": _moco_file,
        "mae-l": lambda: {"model": _state(_small_mae(img_size=224))},
        "ijepa-h": _jepa_file,
        "clip-l": lambda: _prefixed("visual.", _state(_openai_visual())),
    }
    return content[preset]()


def original_tokens(preset: str, content: dict, raw_image: torch.Tensor) -> np.ndarray:
    """(B, N, D): what the original's loop makes of uint8 (B, 3, H, W) with these weights."""
    scope = {"timm": __import__("timm"), "torch": torch, "OrderedDict": OrderedDict}
    names = ("fix_mocov3_state_dict", "load_encoders")
    _execute("utils.py", lambda node: getattr(node, "name", None) in names, scope)
    with _files(preset, content, scope):
        encoders, types_, architectures = scope["load_encoders"](NAMES[preset], "cpu")
    _execute("train_repae.py", _is_preprocessing, scope | _transforms(), into=scope)
    scope |= dict(
        encoders=encoders, encoder_types=types_, architectures=architectures,
        raw_image=raw_image, accelerator=mock.Mock(autocast=contextlib.nullcontext),
    )  # fmt: skip
    exec(_extraction(), scope)
    (tokens,) = scope["zs"]
    return tokens.numpy()


def _modules():
    names = ("mocov3_vit", "mae_vit", "jepa")
    return tuple(original_module(f"models/{name}.py") for name in names)


def _small_moco():
    sizes = SIZES | dict(depth=MOCO_DEPTH)
    return _modules()[0].VisionTransformerMoCo(img_size=256, patch_size=16, **sizes)


def _small_mae(**size):
    return _modules()[1].VisionTransformer(num_classes=0, patch_size=16, **SIZES, **size)


def _small_jepa(**size):
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    return _modules()[2].VisionTransformer(qkv_bias=True, norm_layer=norm, **SIZES, **size)


def _openai_visual():
    """The module that CLIP's package holds, of whose parts the original's file has its own."""
    parts = original_module("models/clip_vit.py")
    visual = torch.nn.Module()
    visual.conv1 = torch.nn.Conv2d(3, DIM, 14, 14, bias=False)
    visual.class_embedding = torch.nn.Parameter(torch.zeros(DIM))
    visual.positional_embedding = torch.nn.Parameter(torch.zeros(257, DIM))
    visual.ln_pre = parts.LayerNorm(DIM)
    visual.transformer = parts.Transformer(DIM, DEPTH, HEADS)
    visual.ln_post = parts.LayerNorm(DIM)
    visual.proj = torch.nn.Parameter(torch.zeros(DIM, 8))
    return visual


def _state(module):
    randomise(module)
    for name, parameter in module.named_parameters():
        if name in ("pos_embed", "positional_embedding"):
            parameter.data.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    return state_of(module)


def _moco_file():
    encoder = _small_moco()
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, 197, DIM))  # as trained at 224 pixels
    misnamed = {}
    for name, array in _state(encoder).items():
        for right, wrong in (
            ("blocks.13.norm1.", "blocks.13.norm13."),
            ("blocks.13.mlp.fc1.", "blocks.13.mlp.fc13."),
            ("blocks.14.norm2.", "blocks.14.norm14."),
            ("blocks.14.mlp.fc2.", "blocks.14.mlp.fc14."),
        ):
            name = name.replace(right, wrong)
        misnamed[name] = array
    other = {name: array + 1 for name, array in misnamed.items()}
    head = {"head.0.weight": np.ones((8, DIM), np.float32)}
    return {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": {
            **_prefixed("module.base_encoder.", misnamed | head),
            **_prefixed("module.momentum_encoder.", other | head),
            "module.predictor.0.weight": np.ones((8, 8), np.float32),
        },
    }


def _jepa_file():
    encoder = _state(_small_jepa(img_size=[224, 224], patch_size=14))
    target = {name: array + 1 for name, array in encoder.items()}
    return {
        "encoder": _prefixed("module.", encoder),
        "predictor": {"module.predictor_norm.weight": np.ones(8, np.float32)},
        "target_encoder": _prefixed("module.", target),
        "epoch": 300,
    }


def _prefixed(prefix, tensors):
    return {prefix + name: array for name, array in tensors.items()}


@contextlib.contextmanager
def _files(preset, content, scope):
    """`load_encoders` finds our weights where it looks for files, and builds our sizes."""
    clip = types.ModuleType("clip")
    visual = _openai_visual() if preset == "clip-l" else None
    if visual is not None:
        tensors = {n.removeprefix("visual."): torch.tensor(a) for n, a in content.items()}
        visual.load_state_dict(tensors)
    clip.load = lambda name, device: (types.SimpleNamespace(visual=visual), None)
    replaced = {
        "clip": clip,
        "models": types.ModuleType("models"),
        "models.mae_vit": types.SimpleNamespace(vit_large_patch16=_small_mae),
        "models.jepa": types.SimpleNamespace(vit_huge=_small_jepa),
        "models.clip_vit": original_module("models/clip_vit.py"),
    }
    scope["mocov3_vit"] = types.SimpleNamespace(vit_base=_small_moco)
    scope["open"] = lambda *args: contextlib.nullcontext()
    as_tensors = mock.patch.object(torch, "load", return_value=_tensors(content))
    with mock.patch.dict(sys.modules, replaced), as_tensors:
        yield


def _tensors(content):
    if isinstance(content, dict):
        return {name: _tensors(value) for name, value in content.items()}
    return torch.tensor(content) if isinstance(content, np.ndarray) else content


def _transforms():
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.transforms import Normalize

    return {
        "Normalize": Normalize,
        "IMAGENET_DEFAULT_MEAN": IMAGENET_DEFAULT_MEAN,
        "IMAGENET_DEFAULT_STD": IMAGENET_DEFAULT_STD,
    }


def _is_preprocessing(node):
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]).startswith("CLIP_DEFAULT_")
    return getattr(node, "name", None) == "preprocess_raw_image"


def _extraction():
    """The loop's block that fills `zs`."""
    (block,) = (
        node
        for node in ast.walk(parsed(pathlib.Path(ORIGINAL) / "train_repae.py"))
        if isinstance(node, ast.With) and "preprocess_raw_image" in ast.unparse(node)
        and ast.unparse(node.items[0]) == "torch.no_grad()"
    )  # fmt: skip
    return compile(ast.Module([block], []), "train_repae.py", "exec")


def _execute(script, wanted, scope, into=None):
    """Run the script's top-level statements that are `wanted`."""
    found = [node for node in parsed(pathlib.Path(ORIGINAL) / script).body if wanted(node)]
    exec(compile(ast.Module(found, []), script, "exec"), scope)
    if into is not None:
        into |= scope
