"""A finished or running work directory, opened for use: sampling, measuring, reporting."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.models.networks import Models
from repae_jax.parallel.mesh import replicated
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import FOLDER, Checkpoints
from repae_jax.runs.state import TrainState, tokenizer_variables
from repae_jax.runs.workdir import load_config
from repae_jax.sampling.samplers import Sampler

_SAMPLES = 2**32 - 2  # folded into the seed's key; no step has this number


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory's state and what is needed to use it."""

    workdir: pathlib.Path
    config: ConfigDict
    models: Models
    state: TrainState


def open_run(workdir: pathlib.Path, mesh: Mesh | None = None, *, step: int | None = None) -> Run:
    """Load the newest checkpoint of `workdir`, or that of a step.

    Args:
      workdir: the run's folder.
      mesh: put the state on all of its devices, which all processes ask for alike; None: on the
        first device.
      step: take this checkpoint and no other.

    Raises:
      UserError: there is no run or no such checkpoint, or it is damaged.
    """
    config = load_config(workdir)
    models = build_models(config)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = one if mesh is None else replicated(mesh)
    state = load_state(workdir, config, models, sharding, step=step)
    return Run(workdir, config, models, state)


def load_state(
    workdir: pathlib.Path,
    config: ConfigDict,
    models: Models,
    sharding: jax.sharding.Sharding,
    *,
    optimizers: bool = False,
    step: int | None = None,
) -> TrainState:
    """The newest state in `workdir`, or that of a step, all of it at `sharding`.

    `opt_state` is empty unless it is asked for.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(f"{workdir} has no checkpoint yet: train first")
    template = state_template(config, models, sharding)
    if not optimizers:
        template = template.replace(opt_state={})
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore(template, step)[0]
    finally:
        checkpoints.close()


def sampling_weights(state: TrainState) -> Mapping[str, Any]:
    """What `make_generate`'s function takes: averaged backbone, statistics, tokenizer."""
    return {
        "backbone": {name: tree for name, tree in state.ema.items() if name != "latent_norm"},
        "latent_norm": state.ema["latent_norm"],
        "tokenizer": tokenizer_variables(state.params, state.frozen),
    }


def sampling_key(config: ConfigDict) -> jax.Array:
    """The key of the images that a run makes of itself: sample grids and measures.

    Training folds the number of a step into the seed's key, and sampling that of an image, so of
    the same key they would draw the same numbers.
    """
    return jax.random.fold_in(jax.random.key(config.seed), _SAMPLES)


def make_sampler(config: ConfigDict, **changes: Any) -> Sampler:
    """The sampler of `config.sampling`, with `changes` that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    return Sampler(interpolant=config.objective.interpolant, **{**config.sampling, **given})
