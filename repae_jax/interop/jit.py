"""The JiT under the names of its authors' code (LTH14/JiT), which iREPA's copy has too.

A training checkpoint holds "model", "model_ema1" and "model_ema2", whose names begin with "net.",
"optimizer" (AdamW, the parameters without weight decay first), "epoch" and "args".
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.checkpoint_schema import notes_of
from repae_jax.interop.sit import block_rules, final_rules
from repae_jax.interop.tables import CONV1X1, LINEAR, Layout, Rule, layer, patch_layout
from repae_jax.models.backbones.jit import PRESETS
from repae_jax.models.backbones.transformer import preset_of

PREFIX = "net."  # of the names in all state dicts
SIGN = r"x_embedder\.proj1\.weight$"  # a name that every file has
_HEAD = re.compile(r"(?:^|\.)projectors\.\d+\.")
_CONTEXT = Layout(lambda a: a[0], lambda a: a[None])  # (1, L, D) <-> (L, D)


# The layers of a block, in the order of PyTorch's parameters.
_BLOCK = (
    "norm1", "attn.q_norm", "attn.k_norm", "attn.qkv", "attn.proj", "norm2", "mlp.w12", "mlp.w3",
)  # fmt: skip


def jit_rules(patch_size: int) -> list[Rule]:
    """Rules for the parameters and the position table, in the order of PyTorch's parameters."""
    return [
        Rule("pos_embed", "constants/position_table"),
        Rule("in_context_posemb", "params/context_table", _CONTEXT),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        *layer(
            "x_embedder.proj1", "params/patch_embed/proj1", patch_layout(patch_size), bias=False
        ),
        *layer("x_embedder.proj2", "params/patch_embed/proj2", CONV1X1),
        *block_rules(_BLOCK),
        *final_rules(),
    ]


# Their key -> that of other checkpoints.
_KEYS = {"model_ema1": "ema", "optimizer": "opt"}
_SECOND = "model_ema2"


def parts_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint of JiT under the keys of others; other content as it is.

    Projection heads are left out, and with them the optimizer, which numbers their parameters. So
    is the second moving average; without the first it takes its place.
    """
    held = [
        key
        for key in ("model", "model_ema1", _SECOND)
        if isinstance(content.get(key), Mapping)
        and any(re.search(rf"(?:^|\.){SIGN}", str(name)) for name in content[key])
    ]
    if not held or (held == ["model"] and "optimizer" not in content):
        return content
    parts, notes = dict(content), list(notes_of(content))
    second = parts.pop(_SECOND, None)
    if second is not None and "model_ema1" in parts:
        notes.append(f"left out: {_SECOND}, a second moving average")
    elif second is not None:
        parts["model_ema1"] = second
    parts = {_KEYS.get(key, key): value for key, value in parts.items()}
    heads = False
    for key in ("model", "ema"):
        if isinstance(parts.get(key), Mapping):
            whole = parts[key]
            parts[key] = {n: a for n, a in whole.items() if not _HEAD.search(str(n))}
            heads |= len(parts[key]) < len(whole)
    if heads:
        parts.pop("opt", None)
        notes.append("left out: the projection heads, and the optimizer, which numbers them too")
    return {**parts, "notes": tuple(notes)}


def is_jit(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors under a backbone's own names are those of a JiT."""
    return "x_embedder.proj1.weight" in tensors


def optimizer_order(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """The parameters of the two groups of its optimizer: without weight decay, and with it.

    Vectors and biases have no decay; the position table is in neither group.
    """
    trained = [name for name in shapes if name != "pos_embed"]
    vectors = [name for name in trained if len(shapes[name]) == 1 or name.endswith(".bias")]
    return vectors, [name for name in trained if name not in vectors]


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of JiT that follow from its tensors: all but `encoder_depth` and `context_start`.

    `num_classes` counts every row of the label table, also the null class.

    Raises:
      UserError: a tensor that determines a dimension is missing.
    """
    tables.check_filled(tensors, source=source)

    shape = functools.partial(tables.shape_of, tensors, what="a JiT", source=source)

    bottleneck, channels, patch, _ = shape("x_embedder.proj1.weight", 4)
    hidden = shape("x_embedder.proj2.weight", 4)[0]
    context = shape("in_context_posemb", 3)[1] if "in_context_posemb" in tensors else 0
    return {
        "latent_size": math.isqrt(shape("pos_embed", 3)[1]) * patch,
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": hidden,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": hidden // shape("blocks.0.attn.q_norm.weight", 1)[0],
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0],
        "bottleneck": bottleneck,
        "context_tokens": context,
    }


def published(found: Mapping[str, Any]) -> str | None:
    """The preset with these dimensions; None for others."""
    return preset_of(found, PRESETS)


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """A JiT's dimensions in words, or the reason why its tensors have none."""
    try:
        d = infer_dimensions(tensors, source="JiT")
    except UserError as error:
        return str(error).removeprefix("JiT: ")
    except (KeyError, IndexError, ValueError, AttributeError, ZeroDivisionError):
        return "damaged: its tensors have not the shapes of a JiT's"
    side = d["latent_size"]
    return (
        f"{published(d) or 'own size'}: width {d['hidden_size']}, depth {d['depth']}, "
        f"{d['num_heads']} heads, patch {d['patch_size']} through {d['bottleneck']} features, "
        f"images {side} x {side} x {d['latent_channels']}, {d['num_classes']} rows of labels, "
        f"{d['context_tokens']} context tokens"
    )
