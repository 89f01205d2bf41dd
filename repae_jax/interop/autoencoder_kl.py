"""AutoencoderKL under the names of the LDM family and of diffusers, and its dimensions in both.

The original's VAE files (SD-VAE, IN-VAE, VA-VAE, E2E-*) use LDM's names; every `AutoencoderKL` on
the Hugging Face hub uses diffusers' names.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import CONV, Layout, Rule, layer, norm
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes

# "diffusers-old": files from before diffusers 0.18, with other names of the attention's layers.
Naming = Literal["ldm", "diffusers", "diffusers-old"]

LINEAR_AS_CONV = Layout(  # a linear layer's (out, in) <-> a 1 x 1 convolution's (1, 1, in, out)
    lambda a: a.T[None, None], lambda a: a[0, 0].T
)
_OLD_CONV = Layout(  # LINEAR_AS_CONV, also for old files that have a convolution's (out, in, 1, 1)
    lambda a: CONV.to_ours(a) if a.ndim == 4 else LINEAR_AS_CONV.to_ours(a),
    LINEAR_AS_CONV.to_theirs,
)
_ATTENTION = {  # ours -> theirs
    "ldm": {"q": "q", "k": "k", "v": "v", "proj_out": "proj_out"},
    "diffusers": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "diffusers-old": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
}
# the beginning of a name that every file has, in LDM's names or diffusers'
SIGN = r"encoder\.down(\.0\.block|_blocks\.0\.resnets)\.0\."
# Tensors that training saves beside the VAE under the same prefix: LDM's loss (discriminator,
# LPIPS) and moving average; VA-VAE's foundation model and the projection onto it.
BESIDE = (r"(loss|model_ema|foundation_model|linear_proj)\..*",)
_DOWN, _ATTENTION_DOWN = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
_UP, _ATTENTION_UP = "UpDecoderBlock2D", "AttnUpDecoderBlock2D"

# the values of keys that a config.json does not name: diffusers' defaults
CONFIG_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": [_DOWN],
    "up_block_types": [_UP],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


def ldm_rules() -> list[Rule]:
    """The rules for LDM's names, in the order of its modules."""
    rules = []
    for side, level, move in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        here, ours = f"{side}.{level}.{{i}}", f"{side}/{level}_{{i}}"
        levels = [
            *_block_rules(f"{here}.block.{{j}}", f"{ours}/block_{{j}}", "nin_shortcut"),
            *_attention_rules(f"{here}.attn.{{j}}", f"{ours}/attn_{{j}}", "ldm"),
            *layer(f"{here}.{move}.conv", f"{side}/{move}_{{i}}", CONV),
        ]
        middle = [
            *_block_rules(f"{side}.mid.block_1", f"{side}/mid/block_1", "nin_shortcut"),
            *_attention_rules(f"{side}.mid.attn_1", f"{side}/mid/attn_1", "ldm"),
            *_block_rules(f"{side}.mid.block_2", f"{side}/mid/block_2", "nin_shortcut"),
        ]
        rules += [
            *layer(f"{side}.conv_in", f"{side}/conv_in", CONV),
            *(levels + middle if side == "encoder" else middle + levels),
            *norm(f"{side}.norm_out", f"{side}/norm_out"),
            *layer(f"{side}.conv_out", f"{side}/conv_out", CONV),
        ]
    return rules + _quant_rules()


def diffusers_rules(levels: int, naming: Naming = "diffusers") -> list[Rule]:
    """The rules for diffusers' names; it numbers the decoder's levels from the lowest resolution.

    Args:
      levels: the number of the VAE's levels.
      naming: "diffusers" or "diffusers-old".
    """
    rules = _quant_rules()
    for side, blocks, level, move in (
        ("encoder", "down_blocks", "down", "downsample"),
        ("decoder", "up_blocks", "up", "upsample"),
    ):
        rules += [
            *layer(f"{side}.conv_in", f"{side}/conv_in", CONV),
            *norm(f"{side}.conv_norm_out", f"{side}/norm_out"),
            *layer(f"{side}.conv_out", f"{side}/conv_out", CONV),
            *_attention_rules(f"{side}.mid_block.attentions.0", f"{side}/mid/attn_1", naming),
        ]
        for index in (0, 1):
            there, here = f"{side}.mid_block.resnets.{index}", f"{side}/mid/block_{index + 1}"
            rules += _block_rules(there, here, "conv_shortcut")
        for i in range(levels):
            number = i if side == "encoder" else levels - 1 - i
            there, here = f"{side}.{blocks}.{number}", f"{side}/{level}_{i}"
            rules += _block_rules(f"{there}.resnets.{{j}}", f"{here}/block_{{j}}", "conv_shortcut")
            rules += _attention_rules(f"{there}.attentions.{{j}}", f"{here}/attn_{{j}}", naming)
            rules += layer(f"{there}.{move}rs.0.conv", f"{side}/{move}_{i}", CONV)
    return rules


def rules_of(naming: Naming, levels: int) -> list[Rule]:
    """The rules for one naming of a VAE with this number of levels."""
    return ldm_rules() if naming == "ldm" else diffusers_rules(levels, naming)


def detect_naming(tensors: Mapping[str, Any]) -> Naming | None:
    """The naming of an AutoencoderKL's tensors; None for the tensors of another network."""
    if any(name.startswith("encoder.down.0.block.0.") for name in tensors):
        return "ldm"
    if any(name.startswith("encoder.down_blocks.0.resnets.0.") for name in tensors):
        old = any(name.endswith(".proj_attn.weight") for name in tensors)
        return "diffusers-old" if old else "diffusers"
    return None


def load_vae(
    tensors: Mapping[str, np.ndarray], vae: AutoencoderKL, *, source: str = "checkpoint"
) -> dict:
    """A VAE's state dict, under LDM's or diffusers' names, as the parameters of `vae`.

    Args:
      tensors: name -> array.
      vae: the VAE that takes the parameters.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: the naming is unknown, or a tensor is missing, extra, misshapen or not finite.
    """
    naming = detect_naming(tensors)
    if naming is None:
        raise UserError(
            f"{source}: not the weights of an AutoencoderKL: has neither 'encoder.down.0.block.0' "
            "(LDM's names) nor 'encoder.down_blocks.0.resnets.0' (diffusers')"
        )
    return tables.load(
        rules_of(naming, len(vae.multipliers)),
        tensors,
        parameter_shapes(vae),
        source=source,
    )


def export_vae(
    params: Mapping, vae: AutoencoderKL, naming: Naming = "diffusers"
) -> dict[str, np.ndarray]:
    """The inverse of `load_vae`, in the order of LDM's or diffusers' modules."""
    rules = rules_of(naming, len(vae.multipliers))
    return tables.in_order(rules, tables.to_theirs(rules, tables.flatten(params)))


def blank_layers(params: Mapping) -> list[str]:
    """A note for each layer around the latent whose weights are all zeros."""
    flat = tables.flatten(params)
    last = "quant" if "quant/kernel" in flat else "encoder/conv_out"
    effects = {
        "encoder/conv_out": "all latents are alike",
        "quant": "all latents are alike",
        "post_quant": "all images decode alike",
        "decoder/conv_in": "all images decode alike",
    }
    notes = []
    for path, effect in effects.items():
        kernel = np.asarray(flat.get(f"{path}/kernel", np.ones(2)))
        if path == last:  # the first half of its outputs is the mean
            kernel = kernel[..., : kernel.shape[-1] // 2]
        if not kernel.astype(bool).any():
            name = f"{path}_conv" if "quant" in path else path.replace("/", ".")
            notes.append(f"{name} is all zeros: {effect}")
    return notes


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of AutoencoderKL that follow from tensors under LDM's or diffusers' names.

    The result lacks `groups`, which tensors do not determine: all published files have 32 groups,
    the field's default.

    Raises:
      UserError: a tensor that determines a dimension is missing.
    """
    tables.check_filled(tensors, source=source)
    naming = detect_naming(tensors)
    numbers = {
        int(match[1])
        for name in tensors
        if (match := re.match(r"encoder\.down(?:_blocks)?\.(\d{1,9})\.", name))
    }
    rules = rules_of(naming or "ldm", len(numbers))
    ours = tables.to_ours(rules, tensors, source=source)

    def width(path, axis=-1):
        if path not in ours:
            raise UserError(f"{source}: {path.replace('/', '.')!r} is missing")
        return ours[path].shape[axis]

    def count(prefix):
        return len({m[1] for path in ours if (m := re.match(rf"{prefix}_(\d+)/", path))})

    channels = width("encoder/conv_in/kernel")
    levels = range(len(numbers))
    return {
        "channels": channels,
        "multipliers": tuple(
            width(f"encoder/down_{i}/block_0/conv1/kernel") // channels for i in levels
        ),
        "latent_channels": width("decoder/conv_in/kernel", axis=-2),
        "num_res_blocks": count("encoder/down_0/block"),
        "attention_levels": tuple(i for i in levels if count(f"encoder/down_{i}/attn")),
        "middle_attention": "encoder/mid/attn_1/q/kernel" in ours,
        "quant_conv": "quant/kernel" in ours,
        "image_channels": width("encoder/conv_in/kernel", axis=-2),
    }


def dimensions_from_config(config: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The fields of AutoencoderKL from diffusers' config.json.

    Raises:
      UserError: a variant that AutoencoderKL does not support.
    """
    full = {**CONFIG_DEFAULTS, **config}
    channels = full["block_out_channels"]
    down = list(full["down_block_types"])
    attention = tuple(i for i, kind in enumerate(down) if kind == _ATTENTION_DOWN)
    fields = {
        "channels": channels[0],
        "multipliers": tuple(width // channels[0] for width in channels),
        "latent_channels": full["latent_channels"],
        "num_res_blocks": full["layers_per_block"],
        "attention_levels": attention,
        "middle_attention": full["mid_block_add_attention"],
        "quant_conv": full["use_quant_conv"],
        "groups": full["norm_num_groups"],
        "image_channels": full["in_channels"],
    }
    expected = {**_config_of_fields(**fields), "act_fn": "silu"}
    for key, value in expected.items():
        if _plain(full[key]) != _plain(value):
            raise UserError(
                f"{source}: {key} is {full[key]!r}, but AutoencoderKL here takes {value!r} beside "
                "the file's other values"
            )
    if any(width % fields["groups"] for width in channels):
        raise UserError(
            f"{source}: norm_num_groups is {fields['groups']}, which does not divide all of "
            f"block_out_channels {list(channels)}"
        )
    return fields


def config_from_dimensions(vae: AutoencoderKL) -> dict[str, Any]:
    """diffusers' config.json for `vae`: its dimensions, without the scaling of its latents."""
    dimensions = _config_of_fields(
        channels=vae.channels,
        multipliers=vae.multipliers,
        latent_channels=vae.latent_channels,
        num_res_blocks=vae.num_res_blocks,
        attention_levels=vae.attention_levels,
        middle_attention=vae.middle_attention,
        quant_conv=vae.quant_conv,
        groups=vae.groups,
        image_channels=vae.image_channels,
    )
    return {"_class_name": "AutoencoderKL", "act_fn": "silu", **dimensions}


def _config_of_fields(
    *, channels, multipliers, latent_channels, num_res_blocks, attention_levels,
    middle_attention, quant_conv, groups, image_channels,
):  # fmt: skip
    levels = len(multipliers)
    down = [_ATTENTION_DOWN if i in attention_levels else _DOWN for i in range(levels)]
    up = [_ATTENTION_UP if kind == _ATTENTION_DOWN else _UP for kind in reversed(down)]
    return {
        "block_out_channels": [channels * multiplier for multiplier in multipliers],
        "down_block_types": down,
        "up_block_types": up,
        "latent_channels": latent_channels,
        "layers_per_block": num_res_blocks,
        "mid_block_add_attention": middle_attention,
        "norm_num_groups": groups,
        "use_quant_conv": quant_conv,
        "use_post_quant_conv": quant_conv,
        "in_channels": image_channels,
        "out_channels": image_channels,
    }


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _quant_rules():
    return [*layer("quant_conv", "quant", CONV), *layer("post_quant_conv", "post_quant", CONV)]


def _block_rules(theirs, ours, shortcut):
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *layer(f"{theirs}.conv1", f"{ours}/conv1", CONV),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *layer(f"{theirs}.conv2", f"{ours}/conv2", CONV),
        *layer(f"{theirs}.{shortcut}", f"{ours}/shortcut", CONV),
    ]


def _attention_rules(theirs, ours, naming):
    layout = {"ldm": CONV, "diffusers": LINEAR_AS_CONV, "diffusers-old": _OLD_CONV}[naming]
    rules = norm(f"{theirs}.{'norm' if naming == 'ldm' else 'group_norm'}", f"{ours}/norm")
    for here, there in _ATTENTION[naming].items():
        rules += layer(f"{theirs}.{there}", f"{ours}/{here}", layout)
    return rules
