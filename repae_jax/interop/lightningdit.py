"""The LightningDiT under the names of its authors' code (hustvl/LightningDiT).

A training checkpoint holds "model" and "ema", "opt" (AdamW) and "config". The names of "model"
begin with "module."; those of "ema" do not.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.sit import block_rules, final_rules
from repae_jax.interop.tables import LINEAR, Rule, layer, patch_layout
from repae_jax.models.backbones.lightningdit import PRESETS, LightningDiT
from repae_jax.models.backbones.transformer import preset_of
from repae_jax.models.rotary import angles

# The tables of cosines and sines, which the grid and the width of a head determine.
ROTARY = {"feat_rope.freqs_cos": np.cos, "feat_rope.freqs_sin": np.sin}
PREFIX = "module."  # of the names in "model"


# The layers of a block, in the order of PyTorch's parameters.
BLOCK = (
    "norm1", "norm2", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj",
    "mlp.w12", "mlp.w3", "mlp.fc1", "mlp.fc2",
)  # fmt: skip


def lightningdit_rules(patch_size: int) -> list[Rule]:
    """Rules for the parameters and the position table, in the order of PyTorch's parameters."""
    return [
        Rule("pos_embed", "constants/position_table"),
        *layer("x_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        *block_rules(BLOCK),
        *final_rules(),
    ]


def rotary_tables(model: LightningDiT) -> dict[str, np.ndarray]:
    """The tables (grid * grid, head width) of the authors' state dict; {} without rotation."""
    if not model.rotary:
        return {}
    turns = angles(model.grid, model.hidden_size // model.num_heads)
    return {name: f(turns).repeat(2, axis=1).astype(np.float32) for name, f in ROTARY.items()}


def is_lightningdit(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors under SiT's names are those of a LightningDiT."""
    own = ("blocks.0.norm1.weight", "blocks.0.mlp.w12.weight", *ROTARY)
    return any(name in tensors for name in own)


# A tensor's name -> the backbone of the same name, or relative of it, that has it.
_OTHERS = {
    "t_embedder.learnable_tokens": (
        "LightningDiT of diffusion-bench (End2End-Diffusion/diffusion-bench)"
    ),
    "t_embedder.W": "LightningDiT of RAE (bytetriper/RAE)",
}


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of LightningDiT that follow from its tensors: all but `encoder_depth`.

    `num_classes` counts every row of the label table, also the null class.

    Raises:
      UserError: a tensor that determines a dimension is missing, the number of heads is unknown,
        or the tensors are of another backbone of that name.
    """
    tables.check_filled(tensors, source=source)
    for name, owner in _OTHERS.items():
        if name in tensors:
            raise UserError(
                f"{source}: the tensor {name!r} is of the {owner}, which differs from the "
                "LightningDiT of its authors (hustvl/LightningDiT)"
            )

    shape = functools.partial(tables.shape_of, tensors, what="a LightningDiT", source=source)

    hidden, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    grid = math.isqrt(shape("pos_embed", 3)[1])
    rows = shape("blocks.0.adaLN_modulation.1.weight", 2)[0]
    if shape("final_layer.linear.weight", 2)[0] == 2 * patch**2 * channels:
        raise UserError(
            f"{source}: its last layer has twice the latents' {channels} channels (learn_sigma), "
            "whose second half nothing trains: only models without it are read"
        )
    return {
        "latent_size": grid * patch,
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": hidden,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": _heads(tensors, hidden, source),
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0],
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "rotary": "feat_rope.freqs_cos" in tensors,
        "swiglu": "blocks.0.mlp.w12.weight" in tensors,
        "rms_norm": "blocks.0.norm1.weight" in tensors,
        "shift": rows == 6 * hidden,
    }


def _heads(tensors, hidden, source):
    if "feat_rope.freqs_cos" in tensors:
        return hidden // tensors["feat_rope.freqs_cos"].shape[-1]
    if "blocks.0.attn.q_norm.weight" in tensors:
        return hidden // tensors["blocks.0.attn.q_norm.weight"].shape[0]
    published = {preset["hidden_size"]: preset["num_heads"] for preset in PRESETS.values()}
    if hidden not in published:
        raise UserError(
            f"{source}: a LightningDiT of width {hidden} is none of the published sizes, and its "
            "weights do not determine its number of heads: give a configuration"
        )
    return published[hidden]


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """A LightningDiT's dimensions in words, or the reason why its tensors have none."""
    try:
        d = infer_dimensions(tensors, source="LightningDiT")
    except UserError as error:
        return str(error).removeprefix("LightningDiT: ")
    except (KeyError, IndexError, ValueError, AttributeError, ZeroDivisionError):
        return "damaged: its tensors have not the shapes of a LightningDiT's"
    side = d["latent_size"]
    options = [name for name in ("qk_norm", "rotary", "swiglu", "rms_norm", "shift") if d[name]]
    return (
        f"{preset_of(d, PRESETS) or 'own size'}: width {d['hidden_size']}, depth {d['depth']}, "
        f"{d['num_heads']} heads, patch {d['patch_size']}, latents {side} x {side} x "
        f"{d['latent_channels']}, {d['num_classes']} rows of labels; with {', '.join(options)}"
    )
