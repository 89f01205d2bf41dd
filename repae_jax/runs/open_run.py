"""Opening of the work directory of a run: to sample, measure, convert or report."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.base import is_identity
from repae_jax.parallel.mesh import place, replicated
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import FOLDER, TRAIN_FIRST, Checkpoints
from repae_jax.runs.initial_state import load_text_encoder
from repae_jax.runs.state import TrainState, averaged_tokenizer
from repae_jax.runs.weights import statistics_of
from repae_jax.runs.workdir import opened_config

_OF_TEXT = ("text_encoder", "null_condition")
_NO_BACKBONE = ("latent_norm", "tokenizer")  # parts of the moving average
_SAMPLES = 2**32 - 2  # folded into the seed's key; steps stay below this number


@dataclasses.dataclass(frozen=True)
class Run:
    """An opened run: work directory, configuration, networks and state."""

    workdir: pathlib.Path
    config: ConfigDict
    models: Models
    state: TrainState


def open_run(workdir: pathlib.Path, mesh: Mesh | None = None, *, step: int | None = None) -> Run:
    """Load the newest checkpoint of `workdir`, or the one at `step`.

    The checkpoint of an imported run has no text encoder, which is read from its file.

    Args:
      workdir: the run's folder.
      mesh: replicate the state on all of its devices (all processes make the same call); None: put
        the state on the first device.
      step: load only the checkpoint at this step.

    Raises:
      UserError: there is no run or no such checkpoint, it is damaged, or the text encoder's file is
        missing or damaged.
    """
    config = opened_config(workdir)
    models = build_models(config)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = one if mesh is None else replicated(mesh)
    state = load_state(workdir, config, models, sharding, step=step)
    if loaded := missing_text_encoder(config, models, state):
        placed = place(loaded, jax.tree.map(lambda _: sharding, loaded))
        state = state.replace(frozen={**state.frozen, **placed})
    return Run(workdir, config, models, state)


def missing_text_encoder(config: ConfigDict, models: Models, state: TrainState) -> dict[str, Any]:
    """The text encoder and its null condition, if the state of an imported run lacks them; else {}.

    Raises:
      UserError: its file is missing or damaged.
    """
    if models.text_encoder is None or "text_encoder" in state.frozen:
        return {}
    return load_text_encoder(config, models.text_encoder)


def open_on_host(
    workdir: pathlib.Path, step: int | None = None, *, optimizers: bool = False
) -> Run:
    """Load the newest checkpoint of `workdir`, or the one at `step`, as numpy arrays.

    Args:
      workdir: the run's folder.
      step: load only the checkpoint at this step.
      optimizers: load `opt_state` too; otherwise it is empty.

    Raises:
      UserError: there is no run or no such checkpoint, or it is damaged.
    """
    config = opened_config(workdir)
    models = build_models(config)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    state = load_state(workdir, config, models, host, optimizers=optimizers, step=step)
    return Run(workdir, config, models, jax.tree.map(np.asarray, state))


def run_vae(workdir: pathlib.Path, step: int | None = None) -> StoredVAE:
    """The VAE of a run's newest checkpoint, with the final statistics of its LatentNorm.

    Args:
      workdir: the run's folder.
      step: read only the checkpoint at this step.

    Raises:
      UserError: there is no run, or its checkpoint is damaged.
    """
    return vae_of(open_on_host(workdir, step))


def vae_of(run: Run) -> StoredVAE:
    """The VAE of a run on the host, with the final statistics of its LatentNorm.

    Raises:
      UserError: its latents are the images, or the statistics are invalid.
    """
    tokenizer, state = run.models.tokenizer, run.state
    if is_identity(tokenizer):
        raise UserError(f"{run.workdir}: is trained on pixels, so it has no VAE")
    statistics = statistics_of(state.ema, tokenizer.latent_channels, source=str(run.workdir))
    variables = averaged_tokenizer(state)
    params = variables.pop("params")
    return StoredVAE(tokenizer, params, {}, statistics, constants=variables)


def load_state(
    workdir: pathlib.Path,
    config: ConfigDict,
    models: Models,
    sharding: jax.sharding.Sharding,
    *,
    optimizers: bool = False,
    step: int | None = None,
) -> TrainState:
    """Load the newest state in `workdir`, or the one at `step`, with `sharding` for all arrays.

    Args:
      workdir: the run's folder.
      config: its configuration.
      models: its networks.
      sharding: the sharding of every array.
      optimizers: load `opt_state` too; otherwise it is empty.
      step: load only the checkpoint at this step.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(f"{workdir} has no checkpoint yet: {TRAIN_FIRST}")
    template = state_template(config, models, sharding)
    if not optimizers:
        template = template.replace(opt_state={})
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.restore(template, step)[0]
    finally:
        checkpoints.close()


def sampling_weights(state: TrainState) -> Mapping[str, Any]:
    """The weights for `make_generate`: averaged backbone, latent statistics, tokenizer.

    A run with captions also gives its text encoder and null condition.
    """
    of_text = {name: state.frozen[name] for name in _OF_TEXT if name in state.frozen}
    return {
        **of_text,
        "backbone": {name: tree for name, tree in state.ema.items() if name not in _NO_BACKBONE},
        "latent_norm": state.ema["latent_norm"],
        "tokenizer": averaged_tokenizer(state),
    }


def sampling_key(config: ConfigDict) -> jax.Array:
    """The random key of a run's generated images, in sample grids and measures.

    It differs from the training key: training folds step numbers into its key and sampling folds
    image numbers into its own, so one key for both would repeat random numbers.
    """
    return jax.random.fold_in(jax.random.key(config.seed), _SAMPLES)
