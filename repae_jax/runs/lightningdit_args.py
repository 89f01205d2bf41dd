"""Conversion between LightningDiT's configuration files and configurations.

LightningDiT keeps the content of its YAML file in its checkpoints, under "config".
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config import defaults
from repae_jax.config.published import lightningdit256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.lightningdit import infer_dimensions
from repae_jax.runs.original_args import OURS, backbone_of
from repae_jax.utils.schema import check_schema, real, short_repr, whole

_VAES = {4: ("f8d4", 8), 32: ("f16d32", 16)}  # latent channels -> (VAE, factor)


class _Data(TypedDict, total=False):
    num_classes: whole(1, 2**20)
    latent_multiplier: real()


class _Train(TypedDict, total=False):
    max_steps: whole(1, 2**31 - 1)
    global_batch_size: whole(1, 2**20)
    global_seed: whole(0, 2**32 - 1)
    ckpt_every: whole(1, 2**31 - 1)


class _Optimizer(TypedDict, total=False):
    lr: real()
    beta2: real(0, 1)
    max_grad_norm: real(0, finite=False)


class _Transport(TypedDict, total=False):
    path_type: str
    prediction: str
    use_cosine_loss: bool
    use_lognorm: bool


class _Sample(TypedDict, total=False):
    num_sampling_steps: whole(2, 100_000)
    cfg_scale: real(0)
    cfg_interval_start: real(0, 1)
    timestep_shift: real(0)


class _Config(TypedDict, total=False):
    data: _Data
    train: _Train
    optimizer: _Optimizer
    transport: _Transport
    sample: _Sample
    repae_jax: str


def config_of_lightningdit(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a LightningDiT's training.

    Its network follows from the weights, its training from "config", where it is there. The VAE's
    weights and its latent statistics are no part of it.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: the weights or the configuration are of no LightningDiT that is known here.
    """
    theirs = plain_config(content, source)
    check_schema(theirs, _Config, source=f"{source}: config.")
    if OURS in theirs:
        return from_json(theirs[OURS], source=source)
    config = lightningdit256()
    config.name = "lightningdit"
    _set_network(config, infer_dimensions(content["ema"], source=source), source)
    data, train, optimizer, transport, sample = (
        theirs.get(key, {}) for key in ("data", "train", "optimizer", "transport", "sample")
    )
    if transport.get("prediction", "velocity") != "velocity":
        raise UserError(
            f"{source}: config.transport.prediction is {transport['prediction']!r}: only a model "
            "that predicts the velocity makes images here"
        )
    if transport.get("path_type", "Linear") != "Linear":
        raise UserError(
            f"{source}: config.transport.path_type is {transport['path_type']!r}: use 'Linear'"
        )
    config.seed = train.get("global_seed", config.seed)
    config.batch_size = train.get("global_batch_size", config.batch_size)
    config.run.steps = train.get("max_steps", config.run.steps)
    config.run.checkpoint_every = train.get("ckpt_every", config.run.checkpoint_every)
    adamw = config.optimizer.backbone
    adamw.learning_rate = float(optimizer.get("lr", adamw.learning_rate))
    adamw.b2 = float(optimizer.get("beta2", adamw.b2))
    adamw.max_grad_norm = float(optimizer.get("max_grad_norm", math.inf))
    if transport:
        config.objective.cosine_weight = float(transport.get("use_cosine_loss", False))
        config.time.weighting = "lognormal" if transport.get("use_lognorm") else "uniform"
    _set_sampling(config.sampling, sample)
    config.data.num_classes = data.get("num_classes", config.data.num_classes)
    return apply_recipe(config, "vanilla")


def lightningdit_config(config: ConfigDict) -> dict[str, Any]:
    """LightningDiT's "config" for this configuration; "repae_jax" holds all of it as JSON."""
    adamw, sampling = config.optimizer.backbone, config.sampling
    backbone = defaults.backbone(**config.backbone)
    optimizer = {"lr": adamw.learning_rate, "beta2": adamw.b2}
    if math.isfinite(adamw.max_grad_norm):
        optimizer["max_grad_norm"] = adamw.max_grad_norm
    return {
        "data": {
            "image_size": config.data.resolution,
            "num_classes": config.data.num_classes,
            "latent_norm": True,
            "latent_multiplier": 1.0,
        },
        "model": {
            "model_type": config.backbone.arch,
            "use_qknorm": backbone.qk_norm,
            "use_swiglu": backbone.swiglu,
            "use_rope": backbone.rotary,
            "use_rmsnorm": backbone.rms_norm,
            "wo_shift": not backbone.shift,
        },
        "train": {
            "max_steps": config.run.steps,
            "global_batch_size": config.batch_size,
            "global_seed": config.seed,
            "ckpt_every": config.run.checkpoint_every,
        },
        "optimizer": optimizer,
        "transport": {
            "path_type": "Linear",
            "prediction": "velocity",
            "use_cosine_loss": config.objective.cosine_weight > 0,
            "use_lognorm": config.time.weighting == "lognormal",
        },
        "sample": {
            "mode": "ODE",
            "sampling_method": "euler",
            "num_sampling_steps": sampling.steps + 1,
            "cfg_scale": sampling.guidance_scale,
            "cfg_interval_start": 1.0 - sampling.guidance_high,
            "timestep_shift": 1.0 / sampling.shift,
        },
        OURS: to_json(config),
    }


def latent_multiplier(content: Mapping[str, Any], source: str) -> float:
    """The factor of the normalized latents that a checkpoint was trained on."""
    value = plain_config(content, source).get("data", {}).get("latent_multiplier", 1.0)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) and value else 1.0


def plain_config(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A checkpoint's "config", of values that JSON can hold; {} without one.

    Raises:
      UserError: it is no dict, or JSON cannot hold a value.
    """
    found = content.get("config", {})
    if not isinstance(found, Mapping):
        raise UserError(f"{source}: its 'config' is {short_repr(found)}, not a dict")
    try:
        json.dumps(found)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: its 'config' holds a value that is not plain") from error
    return dict(found)


def _set_network(config, found, source):
    vae, factor = _VAES.get(found["latent_channels"], ("", 0))
    if not vae:
        raise UserError(
            f"{source}: its latents have {found['latent_channels']} channels, as those of no VAE "
            f"of LightningDiT ({', '.join(map(str, _VAES))}): give a configuration with --config"
        )
    options = ("qk_norm", "rotary", "swiglu", "rms_norm", "shift")
    config.backbone = backbone_of(found, "lightningdit", options)
    config.tokenizer = defaults.tokenizer(vae)
    config.data.resolution = found["latent_size"] * factor
    config.data.num_classes = found["num_classes"] - 1


def _set_sampling(sampling, theirs):
    if "num_sampling_steps" in theirs:
        sampling.steps = theirs["num_sampling_steps"] - 1
    if "cfg_scale" in theirs:
        sampling.guidance_scale = float(max(1.0, theirs["cfg_scale"]))
    if "cfg_interval_start" in theirs:
        sampling.guidance_high = 1.0 - theirs["cfg_interval_start"]
    if "timestep_shift" in theirs:
        shift = theirs["timestep_shift"]
        sampling.shift = 1.0 / shift if shift else 1.0
