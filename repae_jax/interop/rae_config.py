"""RAE's dimensions and latent statistics in diffusers' folders and its authors' file."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError, warn
from repae_jax.interop import latent_statistics, tables
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.rae import (
    BASE_GRID,
    CLASS_NAME,
    MEAN,
    PIXELS,
    STD,
    TABLE,
    pixels_in,
    positions_of,
    table_of,
)
from repae_jax.models.batch_norm import LATENT_EPSILON
from repae_jax.models.tokenizers.rae import ENCODERS, FAMILY, RAE

_STD_EPSILON = 1e-5  # that diffusers adds to the standard deviation
_HEADS = {768: 12, 1024: 16, 1152: 16}  # of the authors' decoders, by their width

# The values of keys that a config.json does not name: diffusers' defaults. Two keys that no tensor
# tells have to be there: encoder_input_size and decoder_num_attention_heads.
CONFIG_DEFAULTS = {
    "encoder_type": "dinov2",
    "encoder_hidden_size": 768,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 12,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_intermediate_size": 2048,
    "patch_size": 16,
    "image_size": None,
    "num_channels": 3,
    "encoder_norm_mean": None,
    "encoder_norm_std": None,
    "latents_mean": None,
    "latents_std": None,
    "noise_tau": 0.0,
    "reshape_to_2d": True,
    "use_encoder_loss": False,
    "scaling_factor": 1.0,
}
_SIZES = {  # key of config.json -> field of RAE
    "encoder_type": "encoder",
    "encoder_hidden_size": "latent_channels",
    "encoder_patch_size": "encoder_patch",
    "encoder_num_hidden_layers": "encoder_depth",
    "decoder_hidden_size": "decoder_width",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
    "decoder_intermediate_size": "decoder_hidden",
    "patch_size": "factor",
    "num_channels": "image_channels",
}
_MLP = 3072  # the inner width of transformers' SigLIP and MAE, which diffusers leaves as it is


def rae_dimensions(config: Mapping[str, Any], *, source: str = "config.json") -> dict[str, Any]:
    """The fields of `RAE` from diffusers' config.json.

    Raises:
      UserError: a variant that `RAE` does not support, or a key is missing that no tensor tells.
    """
    for key in ("encoder_input_size", "decoder_num_attention_heads"):
        if key not in config:
            raise UserError(f"{source}: {key} is missing, which no tensor tells")
    full = {**CONFIG_DEFAULTS, **config}
    fields = {ours: full[key] for key, ours in _SIZES.items()}
    if not full["reshape_to_2d"]:
        raise UserError(f"{source}: reshape_to_2d is False, but latents here are (B, h, w, c)")
    patch, side = fields["encoder_patch"], full["encoder_input_size"]
    if side % patch:
        raise UserError(
            f"{source}: encoder_input_size is {side}, not a multiple of encoder_patch_size {patch}"
        )
    check(RAE(**fields), source)
    if fields["encoder"] != "dinov2" and fields["latent_channels"] * 4 != _MLP:
        fields["encoder_hidden"] = _MLP
    fields["position_step"] = BASE_GRID / (side // patch)
    kind = ENCODERS[fields["encoder"]]
    for key, name in (("encoder_norm_mean", "pixel_mean"), ("encoder_norm_std", "pixel_std")):
        values = full[key] or getattr(ENCODERS["dinov2"], name)  # diffusers' default: ImageNet's
        if tuple(values) != getattr(kind, name):
            fields[name] = tuple(values)
    return fields


def check(model: RAE, source: str) -> None:
    """Raise UserError for dimensions that do not fit together."""
    FAMILY.check(model, {}, f"{source}: RAE")


def lacks(model: RAE) -> bool:
    """Whether the class of diffusers has no such network: RAEv2, or MLPs of another width."""
    if model.encoder == "dinov3" or model.encoder_layers or not model.normalized_pixels:
        return True
    plain = 4 * model.latent_channels
    return (model.encoder_hidden or plain) != (plain if model.encoder == "dinov2" else _MLP)


def rae_config(model: RAE) -> dict[str, Any]:
    """The inverse of `rae_dimensions`: config.json for diffusers, without size and statistics.

    Its class has no RAE that it `lacks`.
    """
    return {"_class_name": CLASS_NAME, **sizes_of(model), "reshape_to_2d": True}


def sizes_of(model: RAE) -> dict[str, Any]:
    """The entries of a config.json that are fields of `model`."""
    mean, std = (list(map(float, map(str, values))) for values in model.pixel_statistics)
    sizes = {key: getattr(model, ours) for key, ours in _SIZES.items()}
    return {**sizes, "encoder_norm_mean": mean, "encoder_norm_std": std}


def assumed_config(model: RAE) -> dict[str, Any]:
    """The entries of a config.json for which nothing else tells the size of the images.

    It is the grid for which diffusers computes the decoder's positions as the decoder has them, of
    which 16 x 16 has the authors'.
    """
    grid = max(1, round(BASE_GRID / (model.position_step or 1.0)))
    return {"encoder_input_size": grid * model.encoder_patch}


def refined(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], source: str
) -> dict[str, Any]:
    """`rae_dimensions` with what the tensors determine: they override config.json in diffusers.

    These are the pixels' mean and standard deviation, and the table of positions, which diffusers
    ignores: files that were converted from the authors' may have it.

    Raises:
      UserError: a tensor has another shape, or the table is another one.
    """
    fields, kind = dict(fields), ENCODERS[fields["encoder"]]
    for name, found in pixels_in(tensors, source).items():
        if found is not None:
            fields.pop(PIXELS[name], None)
            if not np.allclose(found, getattr(kind, PIXELS[name]), atol=1e-6):
                fields[PIXELS[name]] = tuple(map(float, found))
    table = tensors.get(f"decoder.{TABLE}")
    if table is not None:
        fields["position_step"], fields["table_grid"] = positions_of(table, source)
    return fields


def infer_decoder(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of `RAE` that follow from the authors' decoder.

    Raises:
      UserError: a tensor that determines a dimension is missing or has another shape.
    """
    tables.check_filled(tensors, source=source)

    def shape(name, rank):
        return tables.shape_of(tensors, name, rank, what="RAE's decoder", source=source)

    width, channels = shape("decoder_embed.weight", 2)
    hidden, _ = shape("decoder_layers.0.intermediate.dense.weight", 2)
    pixels, _ = shape("decoder_pred.weight", 2)
    factor, depth = math.isqrt(pixels // 3), 0
    if 3 * factor**2 != pixels:
        raise UserError(
            f"{source}: 'decoder_pred.weight' has {pixels} outputs, no square of pixels"
        )
    while f"decoder_layers.{depth}.intermediate.dense.weight" in tensors:
        depth += 1
    if not heads_of(width):
        raise UserError(
            f"{source}: a decoder of width {width} has no published number of heads, which its "
            "tensors do not determine: keep it as a diffusers folder"
        )
    if width % 4:
        raise UserError(f"{source}: 'decoder_embed.weight' has width {width}, no multiple of 4")
    step, grid = positions_of(tensors[TABLE], source) if TABLE in tensors else (1.0, 0)
    return {
        "latent_channels": channels,
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": heads_of(width),
        "decoder_hidden": hidden,
        "factor": factor,
        "position_step": step,
        "table_grid": grid,
    }


def heads_of(width: int) -> int:
    """The heads of the authors' decoder of this width; 0 if there is none."""
    return _HEADS.get(width, 0 if width % 64 else width // 64)


def check_same(model: RAE, fields: Mapping[str, Any], source: str) -> None:
    """Raise UserError if a folder's dimensions differ from those of `model`.

    The shapes of the tensors do not show all of them. Other positions of the decoder are a warning:
    those that diffusers computes may not be those that it was trained with.
    """
    other = RAE(**fields)
    if model.position_step != other.position_step:
        warn(
            f"{source}: diffusers computes the decoder's positions with the step "
            f"{other.position_step:g}, but config.tokenizer.position_step is "
            f"{model.position_step:g}, which is used"
        )
    for name in (*_SIZES.values(), "encoder_layers", "normalized_pixels"):
        ours, theirs = getattr(model, name), getattr(other, name)
        if ours != theirs:
            raise UserError(
                f"{source}: its {name} is {theirs!r}, but config.tokenizer.{name} is {ours!r}: "
                "choose the arch that fits the file, or set that key"
            )


def statistics_in(
    tensors: Mapping[str, Any], config: Mapping[str, Any], *, source: str
) -> Statistics | None:
    """LatentNorm's statistics of a folder, (h, w, c); None if it has none.

    diffusers' latents are (z - mean) / (std + 1e-5) * scaling_factor, LatentNorm's
    (z - mean) / sqrt(var + 1e-4): so var = ((std + 1e-5) / scaling_factor)^2 - 1e-4. The tensors
    override config.json.

    Raises:
      UserError: the values are invalid.
    """
    keys, channels = (MEAN, STD), config["encoder_hidden_size"]
    found = [tensors.get(name) for name in keys]
    if found[0] is None or found[1] is None:
        keys = ("latents_mean", "latents_std")
        found = [config[key] for key in keys]
    if found[0] is None and found[1] is None:
        return None
    mean = np.zeros(1) if found[0] is None else found[0]
    std = np.ones(1) if found[1] is None else found[1]
    if keys == (MEAN, STD) and np.shape(mean) == np.shape(std) == (1,):
        unset = config["latents_mean"] is None and config["latents_std"] is None
        if unset and mean[0] == 0 and std[0] == 1:
            return None
    factor = config["scaling_factor"]
    if not factor > 0:
        raise UserError(f"{source}: scaling_factor is {factor}, which has to be above 0")
    mean, std = (_per_channel(values, channels) for values in (mean, std))
    options = dict(source=source, keys=keys, positions="chw")
    latent_statistics.as_statistics(mean, std, channels, power=2, **options)
    exact = (np.asarray(std, np.float64) + _STD_EPSILON) / factor
    return latent_statistics.as_statistics(mean, exact**2 - LATENT_EPSILON, channels, **options)


def _per_channel(values, channels):
    """One number for all channels as one for each; other values as they are."""
    array = np.asarray(values)
    return np.repeat(array.reshape(-1), channels) if array.size == 1 else values


def with_statistics(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    model: RAE,
    statistics: Statistics | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A folder's tensors and config with these statistics: the inverse of `statistics_in`.

    The grid of the statistics is that of the folder, to which diffusers resizes all images. Where
    diffusers computes other positions of the decoder than `model` has, there is a warning, and the
    tensors hold the table, which is read here.

    Raises:
      UserError: the statistics are those of latents that are not square.
    """
    config, mean, std = stored_statistics(config, statistics)
    tensors = {**tensors, MEAN: mean, STD: std}
    grid = config["encoder_input_size"] // model.encoder_patch
    if model.table_grid:
        warn(
            "diffusers computes the decoder's positions, but its training has moved them: its "
            "images will differ there"
        )
    elif BASE_GRID / grid != model.position_step:
        warn(
            f"diffusers computes the decoder's {grid} x {grid} positions with the step "
            f"{BASE_GRID / grid:g}, but it was trained with {model.position_step:g}: its images "
            "will differ there"
        )
        tensors[f"decoder.{TABLE}"] = table_of(model, grid)
    return tensors, config


def stored_statistics(
    config: Mapping[str, Any], statistics: Statistics | None
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The config with statistics, and mean and standard deviation as its class has them.

    Raises:
      UserError: the statistics are those of latents that are not square.
    """
    keys = ("latents_mean", "latents_std")
    if statistics is None:
        config = {**config, **dict.fromkeys((*keys, "image_size")), "scaling_factor": 1.0}
        return config, np.zeros(1, np.float32), np.ones(1, np.float32)
    if all(config[key] is not None for key in keys):
        current = statistics_in({}, config, source="config.json")
        if all(np.array_equal(current[name], statistics[name]) for name in current):
            return dict(config), *(np.asarray(config[key], np.float32) for key in keys)
    mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    std = np.sqrt(var + LATENT_EPSILON) - _STD_EPSILON
    mean, std = (a[None, None] if a.ndim == 1 else a for a in (mean, std))
    rows, columns = mean.shape[:2]
    if rows != columns:
        raise UserError(
            f"the latent statistics have {rows} x {columns} positions, but {CLASS_NAME} of "
            "diffusers has square latents"
        )
    if rows > 1:
        config = {**config, "encoder_input_size": rows * config["encoder_patch_size"]}
    mean, std = (np.ascontiguousarray(a.transpose(2, 0, 1), np.float32) for a in (mean, std))
    lists = dict(zip(keys, (mean.tolist(), std.tolist()), strict=True))
    return {**config, **lists, "image_size": None, "scaling_factor": 1.0}, mean, std
