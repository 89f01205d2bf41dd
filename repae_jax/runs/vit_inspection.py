"""What `inspect` says of a ViT: its families, its size, and the presets that it fits."""

import math
import re
from collections.abc import Iterable

import numpy as np

from repae_jax.interop.detect_format import ViTNames
from repae_jax.interop.vit_names import FAMILIES
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.encoders.vit_presets import VIT_CONFIGS

_NAMINGS = {"authors": "its authors' names", "timm": "timm's names"}


def vit_text(names: ViTNames) -> str:
    """A ViT's possible families (some share their names), naming, size, and matching presets."""
    format, tensors = names.formats[0], names.tensors
    patch_embed = tensors[f"{names.prefix}{format.layers['patch_embed']}.weight"].shape
    table = next((r.theirs for r in format.tensors if r.ours == "position_table"), None)
    positions = tensors[names.prefix + table].shape if table else (0, 0)
    if len(patch_embed) != 4 or len(positions) < 2:
        return "damaged: its tensors lack the shapes of a ViT"
    block = re.escape(names.prefix + format.layers["blocks_{i}/norm1"])
    size = {"dim": patch_embed[0], "patch_size": patch_embed[-1]}
    size["depth"] = count_numbers(block.replace(r"\{i\}", r"(\d+)"), tensors)
    grid = math.isqrt(positions[-2])
    if table:
        size["native_grid"] = grid
    alike = _alike(names)
    fits = [name for name, preset in alike.items() if {key: preset[key] for key in size} == size]
    families = [preset["family"] for preset in alike.values()] or [f.family for f in names.formats]
    naming = _NAMINGS.get(format.naming, "transformers' names")
    where = f"{grid} x {grid} positions" if table else "rotary positions"
    return (
        f"{' or '.join(FAMILIES[name] for name in dict.fromkeys(families))} under {naming}: "
        f"width {size['dim']}, depth {size['depth']}, patch {size['patch_size']}, "
        f"{where}; arch {' or '.join(fits) or 'none of the published'}"
    )


def _alike(names: ViTNames) -> dict[str, dict]:
    """The presets of any size with these tensor names and the same optional tensors."""
    possible = {format.family for format in names.formats}
    theirs = {rule.ours: rule.theirs.format(i=0) for rule in names.formats[0].tensors}
    optional = ("blocks_{i}/ls1/scale", "class_token", "register_tokens")
    held = tuple(names.prefix + theirs.get(ours, "-") in names.tensors for ours in optional)
    held += (any(_holds_layer(names, format, "blocks_{i}/mlp/w12") for format in names.formats),)
    return {
        name: preset
        for name, preset in VIT_CONFIGS.items()
        if preset["family"] in possible and _features(name) == held
    }


def _holds_layer(names, format, layer):
    """Whether the file has a layer of the first block, which may be in parts."""
    parts = format.layers.get(layer, "-")
    tensors = [f"{names.prefix}{part}.weight" for part in np.atleast_1d(parts)]
    return all(name.format(i=0) in names.tensors for name in tensors)


def _features(preset):
    """Whether a preset's ViT has LayerScale, a class token, registers and SwiGLU: four bools."""
    vit = create_vit(preset)
    return vit.layer_scale is not None, vit.class_token, vit.num_registers > 0, vit.swiglu


def count_numbers(pattern: str, names: Iterable[str]) -> int:
    """Count the different numbers in the names at the place of the pattern's group."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
