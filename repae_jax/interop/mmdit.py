"""The MMDiT under the names of REPA's text-to-image code."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.sit import final_rules, head_rules
from repae_jax.interop.tables import LINEAR, Rule, layer, patch_layout
from repae_jax.models.backbones.mmdit import PRESETS, MMDiT
from repae_jax.models.backbones.transformer import preset_of

HEAD_WIDTH = 32  # of every head of REPA's; no tensor shows it
_STREAMS = {"context_block": "context", "x_block": "patches"}  # theirs -> ours
_LAYERS = {  # theirs -> ours, in the order of PyTorch's parameters
    "attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2",
    "adaLN_modulation.1": "modulation",
}  # fmt: skip


def mmdit_rules(patch_size: int) -> list[Rule]:
    """Rules for parameters, heads and the position table, in the order of PyTorch's modules."""
    blocks = [
        rule
        for part, stream in _STREAMS.items()
        for name, ours in _LAYERS.items()
        for rule in layer(
            f"joint_blocks.{{i}}.{part}.{name}", f"params/blocks_{{i}}/{stream}/{ours}", LINEAR
        )
    ]
    return [
        Rule("pos_embed", "constants/position_table"),
        *layer("x_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        *layer("context_embedder", "params/text_embed/linear", LINEAR),
        *blocks,
        *final_rules(),
        *head_rules(),
    ]


def is_mmdit(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors are those of REPA's MMDiT."""
    return "joint_blocks.0.x_block.attn.qkv.weight" in tensors


def check_heads(model: MMDiT) -> None:
    """Raise UserError unless a model's heads are those that REPA's code takes for its files."""
    if model.hidden_size != HEAD_WIDTH * model.num_heads:
        raise UserError(
            f"config.backbone has num_heads {model.num_heads} and hidden_size {model.hidden_size}: "
            f"REPA's code gives every head of an MMDiT {HEAD_WIDTH} channels, and no tensor of its "
            "files would show another number"
        )


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of MMDiT that follow from its tensors, and "text_width".

    The number of heads takes their width for `HEAD_WIDTH`. The length of the text and
    `encoder_depth` do not follow.

    Raises:
      UserError: a tensor that determines a dimension is missing or has another rank.
    """
    tables.check_filled(tensors, source=source)
    shape = functools.partial(tables.shape_of, tensors, what="an MMDiT of REPA", source=source)

    def count(prefix):
        return len({m[1] for name in tensors if (m := re.match(rf"{prefix}\.(\d+)\.", name))})

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    heads = range(count("projectors"))
    return {
        "latent_size": math.isqrt(shape("pos_embed", 3)[1]) * patch,
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": width,
        "depth": count("joint_blocks"),
        "num_heads": width // HEAD_WIDTH,
        "mlp_ratio": shape("joint_blocks.0.x_block.mlp.fc1.weight", 2)[0] / width,
        "teacher_dims": tuple(shape(f"projectors.{k}.4.weight", 2)[0] for k in heads),
        "text_width": shape("context_embedder.weight", 2)[1],
    }


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """The dimensions in words, or the reason why the tensors have none."""
    try:
        d = infer_dimensions(tensors, source="MMDiT")
    except UserError as error:
        return str(error).removeprefix("MMDiT: ")
    except (IndexError, ValueError, ZeroDivisionError):
        return "damaged: its tensors have not the shapes of an MMDiT's"
    side, dims = d["latent_size"], ", ".join(map(str, d["teacher_dims"]))
    return (
        f"{preset_of(d, PRESETS) or 'own size'}: width {d['hidden_size']}, depth {d['depth']}, "
        f"{d['num_heads']} heads, patch {d['patch_size']}, latents {side} x {side} x "
        f"{d['latent_channels']}, text of width {d['text_width']}, heads for teachers of width "
        f"{dims or 'none'}"
    )
