"""Qwen-Image's VAE under diffusers' names: its tensors, and the dimensions in its config.json."""

import itertools
from collections.abc import Mapping

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import CONV, Layout, Rule, layer
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage

CONV3D = Layout(  # (out, in, t, h, w) <-> (t, h, w, in, out)
    lambda a: a.transpose(2, 3, 4, 1, 0), lambda a: a.transpose(4, 3, 0, 1, 2)
)
GAMMA_IMAGE = Layout(  # (C, 1, 1) <-> (C,): the norm of the attention
    lambda a: a[:, 0, 0], lambda a: a[:, None, None]
)
GAMMA_VIDEO = Layout(  # (C, 1, 1, 1) <-> (C,): every other norm
    lambda a: a[:, 0, 0, 0], lambda a: a[:, None, None, None]
)

CLASS_NAME = "AutoencoderKLQwenImage"

_FIELDS = {  # diffusers' name of a dimension -> ours
    "base_dim": "base_dim",
    "z_dim": "latent_channels",
    "dim_mult": "multipliers",
    "num_res_blocks": "num_res_blocks",
    "attn_scales": "attn_scales",
    "temperal_downsample": "temporal_downsample",
    "input_channels": "image_channels",
}

SIGN = r"encoder\.down_blocks\.0\.conv1\."  # the beginning of a name that every file has

# the values of keys that a config.json does not name: diffusers' defaults
CONFIG_DEFAULTS = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "input_channels": 3,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ],
}  # fmt: skip

# keys of the latent statistics, which are no dimensions of the network
_STATISTICS = {"latents_mean", "latents_std"}


def qwen_rules(model: AutoencoderKLQwenImage) -> list[Rule]:
    """Rules from diffusers' names, in its order, to the parameter paths of `model`.

    diffusers numbers the encoder's blocks, attentions and down-samplings in one sequence, so the
    numbers depend on the dimensions. It counts the decoder's levels from the lowest resolution up;
    we count from the highest down, as in the encoder.
    """
    return [
        *layer("encoder.conv_in", "encoder/conv_in", CONV3D),
        *_encoder_level_rules(model),
        *_middle_rules("encoder"),
        *_output_rules("encoder"),
        *layer("quant_conv", "quant", CONV3D),
        *layer("post_quant_conv", "post_quant", CONV3D),
        *layer("decoder.conv_in", "decoder/conv_in", CONV3D),
        *_middle_rules("decoder"),
        *_decoder_level_rules(model),
        *_output_rules("decoder"),
    ]


def load_qwen(
    tensors: Mapping[str, np.ndarray],
    model: AutoencoderKLQwenImage,
    *,
    source: str = "checkpoint",
) -> dict:
    """diffusers' state dict as the parameters of `model`.

    Args:
      tensors: diffusers' names -> arrays.
      model: the VAE that takes the parameters.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    return tables.load(qwen_rules(model), tensors, parameter_shapes(model), source=source)


def export_qwen(params: Mapping, model: AutoencoderKLQwenImage) -> dict[str, np.ndarray]:
    """The inverse of `load_qwen`: diffusers' names -> numpy arrays, in its modules' order."""
    rules = qwen_rules(model)
    return tables.in_order(rules, tables.to_theirs(rules, tables.flatten(params)))


def qwen_dimensions(config: Mapping, *, source: str = "config.json") -> dict:
    """The fields of `AutoencoderKLQwenImage` that diffusers' config.json sets.

    An absent dimension has diffusers' default, which is also our field's default.

    Args:
      config: the content of config.json; latent statistics and keys with a leading underscore are
        ignored.
      source: the config's name in an error, such as the file's name.

    Raises:
      UserError: the config is of another class, has an unknown key, or has dropout.
    """
    name = config.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise UserError(f"{source}: _class_name is {name!r}; this model reads {CLASS_NAME!r} only")
    if config.get("dropout", 0.0) != 0.0:
        raise UserError(
            f"{source}: dropout is {config['dropout']}; this model has none. Set it to 0.0 to "
            "use the weights without"
        )
    known = _FIELDS.keys() | _STATISTICS | {"dropout"}
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    if unknown:
        raise UserError(
            f"{source}: {unknown[0]!r} is {config[unknown[0]]!r}, which this model does not know; "
            "remove it if it does not change the network"
        )
    given = {ours: config[theirs] for theirs, ours in _FIELDS.items() if theirs in config}
    return {ours: tuple(v) if isinstance(v, list | tuple) else v for ours, v in given.items()}


def qwen_config(model: AutoencoderKLQwenImage) -> dict:
    """The inverse of `qwen_dimensions`: config.json for diffusers, without latent statistics."""
    values = {theirs: getattr(model, ours) for theirs, ours in _FIELDS.items()}
    dimensions = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    return {"_class_name": CLASS_NAME, **dimensions, "dropout": 0.0}


def _encoder_level_rules(model):
    rules, index = [], itertools.count()
    for i in range(len(model.multipliers)):
        for j in range(model.num_res_blocks):
            ours = f"encoder/down_{i}"
            rules += _block_rules(f"encoder.down_blocks.{next(index)}", f"{ours}/block_{j}")
            if i in model.attention_levels:
                rules += _attention_rules(f"encoder.down_blocks.{next(index)}", f"{ours}/attn_{j}")
        if i + 1 < len(model.multipliers):
            theirs = f"encoder.down_blocks.{next(index)}"
            rules += layer(f"{theirs}.resample.1", f"encoder/downsample_{i}", CONV)
            rules += layer(f"{theirs}.time_conv", f"encoder/time_conv_{i}", CONV3D)
    return rules


def _decoder_level_rules(model):
    rules = []
    for position, i in enumerate(reversed(range(len(model.multipliers)))):
        theirs = f"decoder.up_blocks.{position}"
        rules += _block_rules(f"{theirs}.resnets.{{j}}", f"decoder/up_{i}/block_{{j}}")
        rules += layer(f"{theirs}.upsamplers.0.resample.1", f"decoder/upsample_{i}", CONV)
        rules += layer(f"{theirs}.upsamplers.0.time_conv", f"decoder/time_conv_{i}", CONV3D)
    return rules


def _middle_rules(side):
    return [
        *_attention_rules(f"{side}.mid_block.attentions.0", f"{side}/mid/attn_1"),
        *_block_rules(f"{side}.mid_block.resnets.0", f"{side}/mid/block_1"),
        *_block_rules(f"{side}.mid_block.resnets.1", f"{side}/mid/block_2"),
    ]


def _output_rules(side):
    return [
        Rule(f"{side}.norm_out.gamma", f"{side}/norm_out/scale", GAMMA_VIDEO),
        *layer(f"{side}.conv_out", f"{side}/conv_out", CONV3D),
    ]


def _block_rules(theirs, ours):
    return [
        Rule(f"{theirs}.norm1.gamma", f"{ours}/norm1/scale", GAMMA_VIDEO),
        *layer(f"{theirs}.conv1", f"{ours}/conv1", CONV3D),
        Rule(f"{theirs}.norm2.gamma", f"{ours}/norm2/scale", GAMMA_VIDEO),
        *layer(f"{theirs}.conv2", f"{ours}/conv2", CONV3D),
        *layer(f"{theirs}.conv_shortcut", f"{ours}/shortcut", CONV3D),
    ]


def _attention_rules(theirs, ours):
    return [
        Rule(f"{theirs}.norm.gamma", f"{ours}/norm/scale", GAMMA_IMAGE),
        *layer(f"{theirs}.to_qkv", f"{ours}/qkv", CONV),
        *layer(f"{theirs}.proj", f"{ours}/proj", CONV),
    ]
