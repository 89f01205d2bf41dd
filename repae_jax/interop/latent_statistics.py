"""Latent statistics, the latents' mean and variance per channel, in the files of a VAE.

In this package they are LatentNorm's {"mean": (c,), "var": (c,)}, float32: normalized latents are
(z - mean) / sqrt(var). `as_statistics` validates them, whatever file they come from.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files

Statistics = Mapping[str, np.ndarray]

_CONFIG_KEYS = ("latents_mean", "latents_std", "scaling_factor", "shift_factor")
# SDXL's pipelines in diffusers multiply `latents_std` by 1 / `scaling_factor`; they read only VAEs
# of this class and number of channels.
_SDXL_CLASS, _SDXL_CHANNELS = "AutoencoderKL", 4


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
) -> dict[str, np.ndarray]:
    """LatentNorm's {"mean": (c,), "var": (c,)} from the numbers of a file, one per channel.

    Args:
      mean: the mean of each channel.
      spread: the spread of each channel, above 0; spread ** power is the variance.
      channels: the required number of channels; None for any number.
      power: 1 if `spread` is a variance, 2 for a standard deviation, -2 for its inverse.
      source: the file's name in an error.
      keys: the file's names of mean and spread.

    Raises:
      UserError: the number or type of the values is wrong, a value is not finite, or a spread is
        not above 0.
    """
    mean, spread = (_numbers(v, source, key) for v, key in zip((mean, spread), keys, strict=True))
    for array, key in ((mean, keys[0]), (spread, keys[1])):
        if array.size != (channels or mean.size) or not array.size:
            needed = f"the VAE has {channels} channels" if channels else f"{keys[0]} {mean.size}"
            raise UserError(f"{source}: {key} has {array.size} values, {needed}")
    with np.errstate(all="ignore"):
        single, var = mean.astype(np.float32), (spread**power).astype(np.float32)
    _raise_for(mean, ~np.isfinite(single), "which is not finite", source, keys[0])
    _raise_for(spread, ~(spread > 0), "which has to be above 0", source, keys[1])
    _raise_for(spread, ~(np.isfinite(var) & (var > 0)), "which is not finite", source, keys[1])
    return {"mean": single, "var": var}


def read(path: str | pathlib.Path, channels: int | None = None) -> dict[str, np.ndarray]:
    """LatentNorm's {"mean": (c,), "var": (c,)} from `latents_scale` = 1 / std and `latents_bias`.

    LightningDiT's file (latents_stats.pt) has `mean` and `std` in their place.

    Raises:
      UserError: a tensor is missing or has invalid values (see `as_statistics`).
    """
    tensors, keys, power = files.read_tensors(path), ("latents_bias", "latents_scale"), -2
    if {"mean", "std"} <= tensors.keys():
        keys, power = ("mean", "std"), 2
    for name in keys:
        if name not in tensors:
            raise UserError(f"{path}: tensor {name!r} is missing")
    bias, scale = (tensors[name] for name in keys)
    return as_statistics(bias, scale, channels, power=power, source=str(path), keys=keys)


def write(path: str | pathlib.Path, statistics: Statistics) -> None:
    """The inverse of `read`, bit for bit: two tensors (1, c, 1, 1), float32."""
    scale = np.asarray(statistics["var"], np.float64) ** -0.5
    tensors = {"latents_scale": scale, "latents_bias": np.asarray(statistics["mean"])}
    shaped = {n: a.astype(np.float32).reshape(1, -1, 1, 1) for n, a in tensors.items()}
    files.write_torch(path, shaped)


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


def _numbers(values, source, key):
    """Values as a float64 vector; a tensor may have only one axis longer than 1."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.asarray(None)
    kinds = "fViu" if isinstance(values, list | tuple) else "fV"  # JSON has one kind of number
    if array.dtype.kind not in kinds or sum(extent != 1 for extent in array.shape) > 1:
        what = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{source}: {key} is {what}, and has to be one real number per channel")
    return array.astype(np.float64).reshape(-1)


def _raise_for(array, bad, what, source, key):
    if bad.any():
        index = int(np.argmax(bad))
        raise UserError(f"{source}: {key}[{index}] is {array[index]:g}, {what}")
