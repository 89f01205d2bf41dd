"""Latent statistics, the latents' mean and variance per channel, in the files of a VAE.

In this package they are LatentNorm's {"mean": (c,), "var": (c,)}, float32: normalized latents are
(z - mean) / sqrt(var). RAE's are those of each position as well, (h, w, c). `as_statistics`
validates them, whatever file they come from.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files

Statistics = Mapping[str, np.ndarray]
Positions = Literal["", "chw", "hwc"]

_CONFIG_KEYS = ("latents_mean", "latents_std", "scaling_factor", "shift_factor")
# SDXL's pipelines in diffusers multiply `latents_std` by 1 / `scaling_factor`; they read only VAEs
# of this class and number of channels.
_SDXL_CLASS, _SDXL_CHANNELS = "AutoencoderKL", 4
_RAE_EPSILON = 1e-5  # that its authors add to the variance


def beside(path: pathlib.Path) -> pathlib.Path:
    """The path of the original's latent statistics for the VAE file `path`."""
    return path.with_name(f"{path.stem}-latents-stats.pt")


def as_statistics(
    mean: Any,
    spread: Any,
    channels: int | None = None,
    *,
    power: int = 1,
    source: str,
    keys: tuple[str, str] = ("mean", "var"),
    positions: Positions = "",
) -> dict[str, np.ndarray]:
    """LatentNorm's {"mean": (c,), "var": (c,)} from the numbers of a file, one per channel.

    With `positions` the file may have one per channel and position; then both are (h, w, c).

    Args:
      mean: the mean of each channel.
      spread: the spread of each channel, above 0; spread ** power is the variance.
      channels: the required number of channels; None for any number.
      power: 1 if `spread` is a variance, 2 for a standard deviation, -2 for its inverse.
      source: the file's name in an error.
      keys: the file's names of mean and spread.
      positions: the axes of the file's arrays, where it may have one number per position.

    Raises:
      UserError: the number or type of the values is wrong, a value is not finite, or a spread is
        not above 0.
    """
    mean, spread = (
        _numbers(values, source, key, positions)
        for values, key in zip((mean, spread), keys, strict=True)
    )
    for array, key in ((mean, keys[0]), (spread, keys[1])):
        count = array.shape[-1]
        if count != (channels or mean.shape[-1]) or not array.size:
            needed = f"the VAE has {channels} channels" if channels else f"{keys[0]} {mean.size}"
            raise UserError(f"{source}: {key} has {count} values, {needed}")
    if mean.ndim == spread.ndim and mean.shape != spread.shape:
        grids = [" x ".join(map(str, array.shape[:-1])) for array in (mean, spread)]
        raise UserError(
            f"{source}: {keys[0]} has {grids[0]} positions, {keys[1]} {grids[1]}: they are of "
            "different latents"
        )
    mean, spread = np.broadcast_arrays(mean, spread)
    with np.errstate(all="ignore"):
        single, var = mean.astype(np.float32), (spread**power).astype(np.float32)
    _raise_for(mean, ~np.isfinite(single), "which is not finite", source, keys[0])
    _raise_for(spread, ~(spread > 0), "which has to be above 0", source, keys[1])
    _raise_for(spread, ~(np.isfinite(var) & (var > 0)), "which is not finite", source, keys[1])
    return {"mean": single, "var": var}


def read(path: str | pathlib.Path, channels: int | None = None) -> dict[str, np.ndarray]:
    """LatentNorm's statistics from `latents_scale` = 1 / std and `latents_bias`.

    LightningDiT's file (latents_stats.pt) has `mean` and `std` in their place. RAE's (stat.pt) has
    `var`, to which its authors add 1e-5, and a `mean` that may be None, which is 0.

    Returns:
      {"mean": (c,), "var": (c,)}; or (h, w, c) where the file has them by position.

    Raises:
      UserError: a tensor is missing or has invalid values (see `as_statistics`).
    """
    tensors, keys, power = files.read_tensors(path), ("latents_bias", "latents_scale"), -2
    if is_of_rae(tensors):
        from repae_jax.models.batch_norm import LATENT_EPSILON  # imports Flax, unlike data sources

        keys, power = ("mean", "var"), 1
        mean, var = tensors.get("mean"), np.asarray(tensors["var"], np.float64)
        mean = np.zeros(_channels_of(var)) if mean is None else mean
        tensors = {"mean": mean, "var": var + (_RAE_EPSILON - LATENT_EPSILON)}
    elif {"mean", "std"} <= tensors.keys():
        keys, power = ("mean", "std"), 2
    for name in keys:
        if name not in tensors:
            raise UserError(f"{path}: tensor {name!r} is missing")
    bias, scale = (tensors[name] for name in keys)
    return as_statistics(
        bias, scale, channels, power=power, source=str(path), keys=keys, positions="chw"
    )


def is_of_rae(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is that of RAE's file of statistics."""
    mean = content.get("mean")
    known = content.keys() <= {"mean", "var"} and (mean is None or isinstance(mean, np.ndarray))
    return known and isinstance(content.get("var"), np.ndarray)


def of_positions(array: np.ndarray) -> np.ndarray:
    """An array (c,) or (h, w, c) as PyTorch's code has it: (1, c, 1, 1) or (1, c, h, w)."""
    return array.reshape(1, -1, 1, 1) if array.ndim == 1 else array.transpose(2, 0, 1)[None]


def write(path: str | pathlib.Path, statistics: Statistics) -> None:
    """The inverse of `read`, bit for bit: two tensors (1, c, 1, 1) or (1, c, h, w), float32."""
    scale = np.asarray(statistics["var"], np.float64) ** -0.5
    tensors = {"latents_scale": scale, "latents_bias": np.asarray(statistics["mean"])}
    files.write_torch(path, {n: of_positions(a.astype(np.float32)) for n, a in tensors.items()})


def write_of_rae(path: str | pathlib.Path, statistics: Statistics) -> None:
    """Write RAE's file: `mean` and `var` without its epsilon, (c, h, w) or (c, 1, 1)."""
    from repae_jax.models.batch_norm import LATENT_EPSILON  # imports Flax, unlike data sources

    var = np.asarray(statistics["var"], np.float64) + (LATENT_EPSILON - _RAE_EPSILON)
    tensors = {"mean": np.asarray(statistics["mean"]), "var": var}
    files.write_torch(path, {n: of_positions(a.astype(np.float32))[0] for n, a in tensors.items()})


def fitted(statistics: Statistics, shape: tuple[int, ...], *, source: str) -> Statistics:
    """Statistics of the shape that a LatentNorm has, (c,) or (h, w, c).

    Those of a channel are those of each of its positions.

    Raises:
      UserError: they are of other positions.
    """
    found = np.shape(statistics["var"])
    if found[:-1] not in ((), tuple(shape[:-1])):
        theirs, ours = (" x ".join(map(str, s[:-1])) or "no" for s in (found, shape))
        raise UserError(
            f"{source}: its latent statistics are of {theirs} positions, but {ours} are needed: "
            "take images of the resolution that they were measured at, or other statistics "
            "(config.tokenizer.statistics)"
        )
    return {name: np.broadcast_to(array, shape) for name, array in statistics.items()}


def from_config(
    config: Mapping[str, Any], channels: int, *, source: str
) -> dict[str, np.ndarray] | None:
    """The latent statistics in diffusers' config.json; None if it has none.

    If `latents_mean` and `latents_std` are both present, they are the statistics per channel, and
    `scaling_factor` is ignored. Otherwise `shift_factor` is the mean and 1 / `scaling_factor` the
    standard deviation of all channels.

    Args:
      config: the config, with the class's defaults for absent keys.
      channels: the channels of the VAE's latents.
      source: the file's name in an error.

    Raises:
      UserError: the values are invalid (see `as_statistics`).
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        keys = ("latents_mean", "latents_std")
        return as_statistics(mean, std, channels, power=2, source=source, keys=keys)
    if config.get("scaling_factor") is None:
        return None
    shift, factor = [config.get("shift_factor") or 0.0], [config["scaling_factor"]]
    keys = ("shift_factor", "scaling_factor")
    one = as_statistics(shift, factor, 1, power=-2, source=source, keys=keys)
    return {name: np.repeat(array, channels) for name, array in one.items()}


def updated_config(
    config: Mapping[str, Any], channels: int, statistics: Statistics | None
) -> dict[str, Any]:
    """`config` with these statistics; unchanged if it has the same statistics already.

    Mean and standard deviation are written per channel. For pipelines that read one factor only,
    `scaling_factor` and `shift_factor` give the same for all channels together. SDXL's pipelines
    could read both and normalize twice; for their VAEs the factors are 1 and 0, or, if all channels
    are alike, the factors stand alone. The classes of Qwen-Image and Wan have no factors, and
    DC-AE's pipelines read `scaling_factor` alone. See docs/weights.md.

    Args:
      config: the config, with the class's defaults for absent keys; without a name of the class it
        is an AutoencoderKL's.
      channels: the channels of the VAE's latents.
      statistics: LatentNorm's statistics; None removes all statistics from the config.
    """
    if statistics is None:
        return {**config, **{key: None for key in _CONFIG_KEYS if key in config}}
    current = from_config(config, channels, source="config.json")
    if current is not None and all(np.array_equal(current[k], statistics[k]) for k in current):
        return dict(config)
    mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    lists = {"latents_mean": mean.tolist(), "latents_std": np.sqrt(var).tolist()}
    if "scaling_factor" not in config:
        return {**config, **lists}
    factors = {"scaling_factor": float(var.mean() ** -0.5), "shift_factor": float(mean.mean())}
    of_sdxl = config.get("_class_name", _SDXL_CLASS) == _SDXL_CLASS
    if of_sdxl and channels == _SDXL_CHANNELS:
        if not mean.any() and (var == var[0]).all():
            lists = dict.fromkeys(lists)
        else:
            factors = {"scaling_factor": 1.0, "shift_factor": 0.0}
    return {**config, **lists, **factors}


def _channels_of(array):
    """The channels of an array (c, h, w), (1, c, h, w) or with one long axis."""
    long = [extent for extent in array.shape if extent != 1]
    return array.size if len(long) < 2 else array.shape[-3] if array.ndim > 2 else array.shape[0]


def _numbers(values, source, key, positions):
    """Values as a float64 vector, or with `positions` as (h, w, c).

    A tensor may have only one axis longer than 1, unless it has positions.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.asarray(None)
    kinds = "fViu" if isinstance(values, list | tuple) else "fV"  # JSON has one kind of number
    several = sum(extent != 1 for extent in array.shape) > 1
    if several and positions and array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.dtype.kind not in kinds or (several and not (positions and array.ndim == 3)):
        what = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{source}: {key} is {what}, and has to be one real number per channel")
    array = array.astype(np.float64)
    if not several:
        return array.reshape(-1)
    return array.transpose(1, 2, 0) if positions == "chw" else array


def _raise_for(array, bad, what, source, key):
    if bad.any():
        index = np.unravel_index(int(np.argmax(bad)), bad.shape)
        place = ", ".join(map(str, (*index[-1:], *index[:-1])))  # channel, row, column
        raise UserError(f"{source}: {key}[{place}] is {array[index]:g}, {what}")
