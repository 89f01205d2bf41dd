"""DC-AE under diffusers' names and under its authors', and its dimensions in both."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.dc_ae_names import Naming, dc_ae_rules
from repae_jax.models.tokenizers.base import variable_shapes
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC, check_dimensions

CLASS_NAME = "AutoencoderDC"
# the beginning of a name that every file has, in the authors' names or diffusers'
SIGN = r"encoder\.(project|conv)_in\."
ORIGINAL_SIGN = r"encoder\.project_in\."  # of the authors' names alone
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which its running statistics ignore
_RESIDUAL, _ATTENTION = "ResBlock", "EfficientViTBlock"
_BATCH_NORM, _CHANNEL_NORM = ("batch_norm", "relu"), ("rms_norm", "silu")
_HEAD_WIDTH = 32  # of all published files

# the values of keys that a config.json does not name: diffusers' defaults
CONFIG_DEFAULTS = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _RESIDUAL,
    "decoder_block_types": _RESIDUAL,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": _CHANNEL_NORM[0],
    "decoder_act_fns": _CHANNEL_NORM[1],
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
    "latents_mean": None,
    "latents_std": None,
}


def detect_naming(tensors: Mapping[str, Any]) -> Naming:
    """The naming of a DC-AE's tensors."""
    return "original" if any(".project_in." in name for name in tensors) else "diffusers"


def load_dc_ae(
    tensors: Mapping[str, np.ndarray], model: AutoencoderDC, *, source: str = "checkpoint"
) -> dict:
    """A state dict, under diffusers' names or the authors', as the variables of `model`.

    Args:
      tensors: name -> array.
      model: the autoencoder that takes the variables.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    naming = detect_naming(tensors)
    if naming == "original":
        tensors = dict(_apart(tensors, source))
    rules, shapes = dc_ae_rules(model, naming), variable_shapes(model)
    return tables.load(rules, tensors, shapes, source=source, ignore=[rf".*\.{_COUNTER}"])


def export_dc_ae(
    variables: Mapping, model: AutoencoderDC, naming: Naming = "diffusers"
) -> dict[str, np.ndarray]:
    """The inverse of `load_dc_ae`: a file's names -> numpy arrays, in its modules' order.

    BatchNorm's counters of batches are 0; PyTorch's running statistics do not depend on them.
    """
    rules = dc_ae_rules(model, naming)
    tensors = tables.in_order(rules, tables.to_theirs(rules, tables.flatten(variables)))
    if naming == "original":
        tensors = dict(_together(tensors))
    return dict(_with_counters(tensors))


def dc_ae_dimensions(config: Mapping[str, Any], *, source: str = "config.json") -> dict[str, Any]:
    """The fields of `AutoencoderDC` from diffusers' config.json.

    Raises:
      UserError: a variant that `AutoencoderDC` does not support.
    """
    full = {**CONFIG_DEFAULTS, **config}
    widths = tuple(full["encoder_block_out_channels"])
    kinds = _each(full["encoder_block_types"], widths)
    scales = [tuple(sizes) for sizes in full["encoder_qkv_multiscales"]]
    attention = tuple(i for i, kind in enumerate(kinds) if kind == _ATTENTION)
    norms = _each(full["decoder_norm_types"], widths)
    fields = {
        "widths": widths,
        "encoder_layers": tuple(full["encoder_layers_per_block"]),
        "decoder_layers": tuple(full["decoder_layers_per_block"]),
        "latent_channels": full["latent_channels"],
        "attention_levels": attention,
        "batch_norm_levels": tuple(i for i, n in enumerate(norms) if n == _BATCH_NORM[0]),
        "scales": scales[attention[-1]] if attention and len(scales) > attention[-1] else (),
        "head_width": full["attention_head_dim"],
        "shuffle": full["downsample_block_type"] == "pixel_unshuffle",
        "image_channels": full["in_channels"],
    }
    supported = dc_ae_config(AutoencoderDC(**fields))
    supported.pop("_class_name")
    for key, value in supported.items():
        if _compared(key, full[key], fields) != _compared(key, value, fields):
            raise UserError(
                f"{source}: {key} is {full[key]!r}, but {CLASS_NAME} here takes {value!r} beside "
                "the file's other values"
            )
    check_dimensions(AutoencoderDC(**fields), f"{source}: ")
    return fields


def dc_ae_config(model: AutoencoderDC) -> dict[str, Any]:
    """The inverse of `dc_ae_dimensions`: config.json for diffusers, without statistics."""
    levels, attention = range(len(model.widths)), model.attention_levels
    kinds = [_ATTENTION if i in attention else _RESIDUAL for i in levels]
    multiscales = [list(model.scales) if i in attention else [] for i in levels]
    norms = [_BATCH_NORM if i in model.batch_norm_levels else _CHANNEL_NORM for i in levels]
    return {
        "_class_name": CLASS_NAME,
        "in_channels": model.image_channels,
        "latent_channels": model.latent_channels,
        "attention_head_dim": model.head_width,
        "encoder_block_types": kinds,
        "decoder_block_types": kinds,
        "encoder_block_out_channels": list(model.widths),
        "decoder_block_out_channels": list(model.widths),
        "encoder_layers_per_block": list(model.encoder_layers),
        "decoder_layers_per_block": list(model.decoder_layers),
        "encoder_qkv_multiscales": multiscales,
        "decoder_qkv_multiscales": multiscales,
        "upsample_block_type": "pixel_shuffle" if model.shuffle else "interpolate",
        "downsample_block_type": "pixel_unshuffle" if model.shuffle else "conv",
        "decoder_norm_types": [name for name, _ in norms],
        "decoder_act_fns": [name for _, name in norms],
        "encoder_out_shortcut": True,
        "decoder_in_shortcut": True,
        "decoder_conv_act_fn": "relu",
    }


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of `AutoencoderDC` that follow from tensors under the authors' names.

    Without a scale of the attention, `head_width` is that of all published files. The width of a
    first level without blocks is that of no tensor: half of the next one, as published.

    Raises:
      UserError: a tensor that determines a dimension is missing.
    """
    tables.check_filled(tensors, source=source)

    def shape(name):
        if name not in tensors:
            raise UserError(f"{source}: {name!r} is missing")
        return tensors[name].shape

    def blocks(side, level, kind):
        pattern = re.compile(rf"{side}\.stages\.{level}\.op_list\.(\d+)\.{kind}\.")
        return sorted({int(m[1]) for name in tensors if (m := pattern.match(name))})

    last = [int(m[1]) for n in tensors if (m := re.match(r"encoder\.stages\.(\d{1,2})\.", n))]
    if not last:
        raise UserError(f"{source}: 'encoder.stages.0' is missing")
    levels, widths, attention, batch_norm = max(last) + 1, [], [], []
    layers = {"encoder": [], "decoder": []}
    scales, head_width = (), _HEAD_WIDTH
    for level in range(levels):
        for side, counts in layers.items():
            kinds = (r"main\.conv1", "context_module")
            counts.append(sum(len(blocks(side, level, kind)) for kind in kinds))
        here = f"encoder.stages.{level}.op_list.0"
        if blocks("encoder", level, "context_module"):
            attention.append(level)
            widths.append(shape(f"{here}.context_module.main.proj.conv.weight")[0])
            prefix = f"{here}.context_module.main.aggreg"
            sizes = [n for n in tensors if re.fullmatch(rf"{re.escape(prefix)}\.\d+\.0\.weight", n)]
            scales = tuple(shape(name)[-1] for name in sizes)
            if sizes:
                head_width = shape(f"{prefix}.0.1.weight")[1]
        elif layers["encoder"][-1]:
            widths.append(shape(f"{here}.main.conv1.conv.weight")[0])
        else:
            widths.append(0)
        pattern = rf"decoder\.stages\.{level}\..*\.running_mean"
        if any(re.fullmatch(pattern, name) for name in tensors):
            batch_norm.append(level)
    if not widths[0] and levels > 1:
        widths[0] = widths[1] // 2
    fields = {
        "widths": tuple(widths),
        "encoder_layers": tuple(layers["encoder"]),
        "decoder_layers": tuple(layers["decoder"]),
        "latent_channels": shape("decoder.project_in.main.conv.weight")[1],
        "attention_levels": tuple(attention),
        "batch_norm_levels": tuple(batch_norm),
        "scales": scales,
        "head_width": head_width,
        "shuffle": any(re.search(r"^encoder\..*\.main\.conv\.conv\.", name) for name in tensors),
        "image_channels": _image_channels(tensors, source),
    }
    check_dimensions(AutoencoderDC(**fields), f"{source}: ")
    return fields


def _image_channels(tensors, source):
    for name in ("encoder.project_in.conv.weight", "encoder.project_in.conv.conv.weight"):
        if name in tensors:
            return tensors[name].shape[1]
    raise UserError(f"{source}: 'encoder.project_in.conv.weight' is missing")


def _compared(key, value, fields):
    """A config's value in the one form of all that mean the same network."""
    if key == "downsample_block_type":  # published files have "Conv"
        return value == "pixel_unshuffle"
    if key == "upsample_block_type":
        return value != "interpolate"
    if key.endswith(("_types", "_fns")):
        return _each(value, fields["widths"])
    if key.endswith("_multiscales"):  # of levels with attention: others have none to apply it to
        return [list(value[i]) for i in fields["attention_levels"] if i < len(value)]
    return list(value) if isinstance(value, tuple) else value


def _each(value, widths):
    return [value] * len(widths) if isinstance(value, str) else list(value)


def _apart(tensors, source) -> Iterator[tuple[str, np.ndarray]]:
    """The authors' tensors, the one projection of the attention as three."""
    for name, array in tensors.items():
        if not name.endswith(".qkv.conv.weight"):
            yield name, array
            continue
        if array.shape[0] % 3:
            raise UserError(f"{source}: tensor {name!r} has shape {array.shape}: not three parts")
        for part, third in zip("qkv", np.split(array, 3), strict=True):
            yield name.replace(".conv.weight", f".conv.{part}.weight"), third


def _together(tensors) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `_apart`."""
    for name, array in tensors.items():
        if name.endswith(".qkv.conv.q.weight"):
            others = [tensors[name.replace(".q.weight", f".{part}.weight")] for part in "kv"]
            yield name.replace(".q.weight", ".weight"), np.concatenate([array, *others])
        elif not re.search(r"\.qkv\.conv\.[kv]\.weight$", name):
            yield name, array


def _with_counters(tensors) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in tensors.items():
        yield name, array
        if name.endswith(".running_var"):
            yield name.replace("running_var", _COUNTER), np.zeros((), np.int64)
