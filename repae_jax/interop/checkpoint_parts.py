"""The parts of a training checkpoint, also if its names are wrapped or parts were left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import (
    autoencoder_kl,
    ddt,
    discriminator,
    fuse_dit,
    jit,
    latent_statistics,
    lightningdit,
    mmdit,
    sit,
)
from repae_jax.interop.adamw import steps_taken
from repae_jax.interop.checkpoint_schema import arguments_of, check_parts, notes_of
from repae_jax.interop.extract import extract
from repae_jax.interop.original import OPTIMIZERS, WEIGHTS, Kind

_OTHER_NAMES = {"model_ema": "ema"}
_NAMES_OF_DDT = {"optimizer": "opt", "step": "steps"}  # RAE and diffusion-bench
_BACKBONE = f"{sit.SIGN}|{jit.SIGN}|{fuse_dit.SIGN}"
_SIGNS = {
    "model": _BACKBONE,
    "ema": _BACKBONE,
    "vae": autoencoder_kl.SIGN,
    "discriminator": discriminator.SIGN,
}
_PATHS = {"Linear": "linear", "GVP": "cosine"}  # SiT's name of an interpolant -> ours
SECOND_HALF = (
    "taken for a SiT, whose last layer's second half is left out; a DiT has the same names and "
    "shapes: give --config imagenet256_dit_sdvae to take it for one"
)


def parts_of(
    content: Mapping[str, Any], *, source: str, dit: bool = False
) -> dict[str, Any] | None:
    """A training checkpoint's content with each network under its own names.

    Names may be wrapped ("module."), the moving average may be called `model_ema`, and all parts
    but one SiT may be missing or None. A missing `model` or `ema` takes the value of the other;
    missing `steps` become 0.

    A DiT has the names and shapes of the SiT of SiT's authors. The arguments decide which it is, of
    which only SiT's have a "prediction". Weights without arguments count as a SiT, or with `dit` as
    a DiT.

    Returns:
      the parts, with `notes` on missing and ignored parts; None for other content.

    Raises:
      UserError: the checkpoint is damaged.
    """
    content = jit.parts_in(content)
    parts = {_OTHER_NAMES.get(key, key): value for key, value in content.items()}
    parts = {key: value for key, value in parts.items() if value is not None}
    if any(isinstance(parts.get(k), Mapping) and ddt.is_ddt(parts[k]) for k in ("model", "ema")):
        parts = {_NAMES_OF_DDT.get(key, key): value for key, value in parts.items()}
    sits = [key for key in ("model", "ema") if _holds(parts.get(key), _BACKBONE, source)]
    if "opt" in parts and {"model", "ema"} & parts.keys():
        _check_optimizers(parts, sits, source)
    if not sits or not (len(sits) > 1 or parts.keys() & {"vae", "opt", "args", "steps"}):
        return None
    check_parts(parts, source)
    notes = list(notes_of(parts))
    for key, sign in _SIGNS.items():
        if key in parts:
            found = extract(parts[key], sign, source=f"{source}: {key}")
            parts[key] = found.tensors if found else parts[key]
            if found and found.left:
                notes.append(f"left out of {key}: {found.left_text()}")
    if "opt" in parts and (lightningdit.is_lightningdit(parts[sits[0]]) or "steps" not in parts):
        parts.setdefault("steps", steps_taken(parts["opt"]))
    notes += _make_whole(parts, sits)
    if kind_of(parts) == "dit":
        arguments = arguments_of(parts, source)
        if not (dit or (arguments and "prediction" not in arguments)):
            notes += _take_velocity(parts, source)
    return {**parts, "notes": tuple(notes)}


def kind_of(content: Mapping[str, Any]) -> Kind:
    """The kind of a training checkpoint that `parts_of` returned."""
    if ddt.is_ddt(content["model"]):
        return ddt.family_of(content["model"])
    if jit.is_jit(content["model"]):
        return "jit"
    if fuse_dit.is_fuse_dit(content["model"]):
        return "fuse-dit"
    if mmdit.is_mmdit(content["model"]):
        return "mmdit"
    if lightningdit.is_lightningdit(content["model"]):
        return "lightningdit"
    if sit.has_second_half(content["model"]):
        return "dit"
    if "vae" in content:
        return "repae"
    return "ldm" if "bn.running_mean" in content["model"] else "repa"


def statistics_in(
    content: Mapping[str, Any], channels: int, *, source: str
) -> dict[str, np.ndarray] | None:
    """The latent statistics in a training checkpoint's moving average; None if it has none.

    Returns:
      {"mean": (c,), "var": (c,)}, float32.

    Raises:
      UserError: the values are not valid statistics (see `latent_statistics`).
    """
    ema, keys = content.get("ema", {}), ("bn.running_mean", "bn.running_var")
    if not all(key in ema for key in keys):
        return None
    mean, var = (ema[key] for key in keys)
    return latent_statistics.as_statistics(mean, var, channels, source=f"{source}: ema", keys=keys)


def _holds(part, sign, source):
    return isinstance(part, Mapping) and extract(part, sign, source=source) is not None


def _check_dicts(parts, source):
    for key in (*_SIGNS, *OPTIMIZERS.values()):
        if key in parts and not isinstance(parts[key], Mapping):
            raise UserError(f"{source}: not a training checkpoint: {key!r} is no dict")


def _check_optimizers(parts, sits, source):
    _check_dicts(parts, source)
    if not sits:
        raise UserError(f"{source}: not a training checkpoint: neither 'model' nor 'ema' is a SiT")
    for network, key in OPTIMIZERS.items():
        if (network == "backbone" or WEIGHTS[network] in parts) and key not in parts:
            raise UserError(
                f"{source}: has 'opt', but {key!r} is missing: leave all optimizers out, or none"
            )


def _make_whole(parts, sits):
    """Fill in missing parts, in place; return a note for each."""
    notes = []
    if sits == ["ema"]:
        parts["model"] = parts["ema"]
        notes.append("no model: its moving average is taken for both")
    if sits == ["model"]:
        parts["ema"] = parts["model"]
        notes.append("no moving average: the model is taken for both")
    if "steps" not in parts:
        parts["steps"] = 0
        notes.append("no step, so the run begins at 0")
    if "opt" not in parts:
        notes.append("no optimizers: their moments begin at zero")
    if "vae" in parts and "discriminator" not in parts:
        notes.append("no discriminator: a fresh one takes its place")
    return notes


def _take_velocity(parts, source):
    """Convert a SiT from its authors' training (arXiv 2401.08740), in place; return notes."""
    arguments = arguments_of(parts, source)
    parts.pop("args", None)
    if arguments and arguments.get("prediction") != "velocity":
        raise UserError(
            f"{source}: its argument 'prediction' is {arguments.get('prediction')!r}: only a SiT "
            "that predicts the velocity makes images here (a DiT predicts the noise)"
        )
    path = arguments.get("path_type", "Linear")
    if path not in _PATHS:
        raise UserError(f"{source}: its argument 'path_type' is {path!r}: use {', '.join(_PATHS)}")
    parts["args"] = {"path_type": _PATHS[path]} if arguments else {}
    parts["model"], parts["ema"] = map(sit.from_published_sit, (parts["model"], parts["ema"]))
    optimizer = parts.pop("opt", None)
    notes = [SECOND_HALF]
    if optimizer:
        notes.append("left out: the moments of its optimizer, which belong to the unconverted SiT")
    return notes
