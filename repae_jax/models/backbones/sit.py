"""SiT, the scalable interpolant transformer (arXiv 2401.08740), with heads for alignment (REPA)."""

from collections.abc import Mapping
from typing import Any

from repae_jax.models.backbones.transformer import (
    SIZES,
    Transformer,
    check,
    defaults_of,
    preset_of,
)
from repae_jax.models.family import Family

# name -> (hidden_size, depth, num_heads); SiT paper (arXiv 2401.08740), table 1.
SIT_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCH_SIZES = (1, 2, 4, 8)
SIT_CONFIGS = {
    f"SiT-{size}/{patch}": dict(hidden_size=hidden, depth=depth, num_heads=heads, patch_size=patch)
    for size, (hidden, depth, heads) in SIT_SIZES.items()
    for patch in PATCH_SIZES
}


class SiT(Transformer):
    """The transformer with LayerNorm, a tanh-GELU MLP, and the fixed table of positions alone."""


def describe(d: Mapping[str, Any]) -> str:
    """A SiT's dimensions in words.

    Args:
      d: the fields of `SiT` and of its conditioner, which may have no classes; num_heads is None
        where it is unknown.
    """
    name = preset_of(d, SIT_CONFIGS) or "own size"
    heads = f"{d['num_heads']} heads" if d["num_heads"] else "unknown number of heads"
    teachers = ", ".join(map(str, d["teacher_dims"])) or "none"
    labels = ""
    if "num_classes" in d:
        labels = f"{d['num_classes'] + int(d.get('null_class', False))} rows of labels, "
    of_class = d.get("class_token_dim")
    beside = f", a class token of width {of_class} (REG)" if of_class else ""
    return (
        f"{name}: width {d['hidden_size']}, depth {d['depth']}, {heads}, patch "
        f"{d['patch_size']}, latents {d['latent_size']} x {d['latent_size']} x "
        f"{d['latent_channels']}, {labels}teachers' widths {teachers}{beside}"
    )


FAMILY = Family(
    SiT,
    options={
        **SIZES,
        **defaults_of(SiT, "encoder_depth", "mlp_ratio", "qk_norm", "class_token_dim"),
    },
    presets=SIT_CONFIGS,
    check=check,
    describe=lambda sit: describe(vars(sit) | vars(sit.conditioner)),
)
