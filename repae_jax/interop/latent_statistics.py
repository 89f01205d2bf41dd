"""The latents' mean and variance, as others write them beside a VAE.

Here they are LatentNorm's {"mean": (c,), "var": (c,)}, float32.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files

Statistics = Mapping[str, np.ndarray]


def beside(path: pathlib.Path) -> pathlib.Path:
    """Where the original keeps the latent statistics of the VAE file `path`."""
    return path.with_name(f"{path.stem}-latents-stats.pt")


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """LatentNorm's {"mean": (c,), "var": (c,)} from `latents_scale` = 1 / std, `latents_bias`.

    Raises:
      UserError: a tensor is missing or not finite.
    """
    tensors = files.read_tensors(path)
    values = {}
    for name in ("latents_bias", "latents_scale"):
        if name not in tensors:
            raise UserError(f"{path}: tensor {name!r} is missing")
        values[name] = np.asarray(tensors[name], np.float32).reshape(-1)
        if not np.isfinite(values[name]).all():
            raise UserError(f"{path}: tensor {name!r} holds values that are not finite")
    var = values["latents_scale"].astype(np.float64) ** -2.0
    return {"mean": values["latents_bias"], "var": var.astype(np.float32)}


def write(path: str | pathlib.Path, statistics: Statistics) -> None:
    """The inverse of `read`, bit for bit: two tensors (1, c, 1, 1), float32."""
    scale = np.asarray(statistics["var"], np.float64) ** -0.5
    tensors = {"latents_scale": scale, "latents_bias": np.asarray(statistics["mean"])}
    shaped = {n: a.astype(np.float32).reshape(1, -1, 1, 1) for n, a in tensors.items()}
    files.write_torch(path, shaped)


def from_config(config: Mapping[str, Any], *, source: str) -> dict[str, np.ndarray] | None:
    """What diffusers' config.json says of the latents' mean and variance.

    `latents_mean` and `latents_std` per channel where there are such, else `shift_factor` and
    1 / `scaling_factor`, which are the same for all channels.

    Raises:
      UserError: the two lists differ in length.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        if config.get("scaling_factor") is None:
            return None
        channels = config["latent_channels"]
        mean = [config.get("shift_factor") or 0.0] * channels
        std = [1.0 / config["scaling_factor"]] * channels
    if np.shape(mean) != np.shape(std):
        raise UserError(f"{source}: latents_mean and latents_std differ in length")
    var = np.asarray(std, np.float64) ** 2
    return {"mean": np.asarray(mean, np.float32), "var": var.astype(np.float32)}


def updated_config(config: Mapping[str, Any], statistics: Statistics | None) -> dict[str, Any]:
    """`config` as it is if it tells these statistics, else with them written into it.

    They are written per channel, and as the one scaling factor that some readers know only;
    Qwen-Image's class has no such factor.
    """
    told = from_config(config, source="config.json")
    if statistics is None or (
        told is not None and all(np.array_equal(told[name], statistics[name]) for name in told)
    ):
        return dict(config)
    mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    entries = {"latents_mean": mean.tolist(), "latents_std": np.sqrt(var).tolist()}
    if config.get("_class_name") != "AutoencoderKLQwenImage":
        entries["scaling_factor"] = float(var.mean() ** -0.5)
    return {**config, **entries}
