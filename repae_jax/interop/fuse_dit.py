"""The text-to-image DiT under fuse-dit's names, which name a transformer's parts as Gemma's."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import LINEAR, Rule, layer, patch_layout
from repae_jax.models.backbones.fuse_dit import PRESETS
from repae_jax.models.backbones.transformer import preset_of

SIGN = r"layers\.0\.self_attn\.text_k_proj\.weight$"  # a name that every file has
# theirs -> ours, in the order of PyTorch's parameters
_ATTENTION = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "text_k_proj": "text_k", "text_v_proj": "text_v",
    "o_proj": "proj",
}  # fmt: skip
_MLP = {f"{name}_proj": name for name in ("gate", "up", "down")}


def fuse_dit_rules(patch_size: int) -> list[Rule]:
    """Rules for parameters and the position table, in the order of PyTorch's modules."""
    return [
        *_block_rules("layers.{i}", "params/blocks_{i}"),
        Rule("patch_embed.pos_embed", "constants/position_table"),
        *layer("patch_embed.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("timestep_embedder.0", "params/time_embed/fc1", LINEAR),
        *layer("timestep_embedder.2", "params/time_embed/fc2", LINEAR),
        _scale("context_embedder.0", "params/text_embed/norm"),
        *layer("context_embedder.1", "params/text_embed/linear", LINEAR),
        *layer("norm_out.linear", "params/final_layer/modulation", LINEAR),
        _scale("norm_out.norm", "params/final_layer/norm"),
        *layer("proj_out", "params/final_layer/linear", LINEAR),
    ]


def _block_rules(theirs, ours):
    def linears(module, our_module, names):
        return [
            Rule(f"{theirs}.{module}.{name}.weight", f"{ours}/{our_module}/{own}/kernel", LINEAR)
            for name, own in names.items()
        ]

    return [
        *layer(f"{theirs}.input_layernorm.linear", f"{ours}/modulation", LINEAR),
        _scale(f"{theirs}.input_layernorm.norm", f"{ours}/norm1"),
        *(_scale(f"{theirs}.self_attn.{n}_norm", f"{ours}/attn/{n}_norm") for n in "qk"),
        *linears("self_attn", "attn", _ATTENTION),
        _scale(f"{theirs}.post_attention_layernorm", f"{ours}/norm2"),
        *linears("mlp", "mlp", _MLP),
    ]


def _scale(theirs, ours):
    return Rule(f"{theirs}.weight", f"{ours}/scale")


def is_fuse_dit(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors are those of fuse-dit's text-to-image DiT."""
    return any(re.match(SIGN, str(name)) for name in tensors)


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of FuseDiT that follow from its tensors, and "text_width".

    The size of the latents, the length of the text and `encoder_depth` do not follow.

    Raises:
      UserError: a tensor that determines a dimension is missing or has another rank.
    """
    tables.check_filled(tensors, source=source)
    what = "a text-to-image DiT of fuse-dit"
    shape = functools.partial(tables.shape_of, tensors, what=what, source=source)
    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    attention = "layers.0.self_attn"
    head = shape(f"{attention}.q_norm.weight", 1)[0]
    return {
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": width,
        "depth": len({m[1] for name in tensors if (m := re.match(r"layers\.(\d+)\.", name))}),
        "num_heads": shape(f"{attention}.q_proj.weight", 2)[0] // head,
        "kv_heads": shape(f"{attention}.text_k_proj.weight", 2)[0] // head,
        "head_width": head,
        "mlp_width": shape("layers.0.mlp.gate_proj.weight", 2)[0],
        "text_width": shape("context_embedder.1.weight", 2)[1],
    }


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """The dimensions in words, or the reason why the tensors have none."""
    try:
        d = infer_dimensions(tensors, source="DiT")
    except UserError as error:
        return str(error).removeprefix("DiT: ")
    except (IndexError, ValueError, ZeroDivisionError):
        return "damaged: its tensors have not the shapes of fuse-dit's DiT"
    return (
        f"{preset_of(d, PRESETS) or 'own size'}: width {d['hidden_size']}, depth {d['depth']}, "
        f"{d['num_heads']} heads and {d['kv_heads']} of keys, each {d['head_width']} wide, patch "
        f"{d['patch_size']}, latents of {d['latent_channels']} channels, text of width "
        f"{d['text_width']}"
    )
