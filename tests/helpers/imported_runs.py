"""Runs made of the originals' checkpoints: their states, their next step, and their velocities."""

import dataclasses
import functools

import jax
import numpy as np
import original_networks as original
from original_comparison import BATCH, MODELS
from original_exchange import small_config
from parity import normal, quick_jit

from repae_jax.interop import files
from repae_jax.runs.build import build_models, build_objective, build_optimizers
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_export import export_run
from repae_jax.runs.original_import import import_run
from repae_jax.runs.state import TrainState
from repae_jax.training.step import make_train_step

STEPS = 2  # before the checkpoint
# those of test_original_step.py; the metrics' is that of its first step
METRIC_LIMIT, VALUE_LIMIT, MOMENT_LIMIT = 1e-4, 1e-3, 1e-2
MOVED_LIMIT, MOVED_TENSOR_LIMIT = 1e-2, 0.3


def there_and_back(checkpoint, config):
    """(checkpoint, the run that it becomes, the checkpoint that this becomes)."""
    folder = checkpoint.parents[2]
    workdir, exported = folder / "run", folder / "ours" / "checkpoints" / checkpoint.name
    content = files.read_stored(checkpoint)
    import_run(content, workdir, config, source=str(checkpoint), progress=False)
    export_run(workdir, exported, progress=False)
    return checkpoint, workdir, exported


def imported_state(workdir, config) -> TrainState:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return load_state(workdir, config, build_models(config), device, optimizers=True)


@functools.cache
def train_step(kind):
    """The compiled step of an imported run; LPIPS is as small as the original's in these tests."""
    config = small_config(kind)
    models = build_models(config)
    if models.lpips is not None:
        models = dataclasses.replace(models, lpips=MODELS.lpips)
    objective, optimizers = build_objective(config), build_optimizers(config)
    return quick_jit(make_train_step(models, objective, optimizers, ema_decay=config.ema_decay))


@functools.cache
def apply_sit():
    return quick_jit(lambda variables, *inputs: MODELS.backbone.apply(variables, *inputs))


def sit_inputs():
    """Noisy latents, times and labels, the null class among them, in our layout."""
    side, channels = original.LATENT_SIZE, original.LATENT_CHANNELS
    x = normal(BATCH, side, side, channels, seed=7)
    time = np.linspace(0, 1, BATCH, dtype=np.float32)
    labels = np.array([0, 3, original.NUM_CLASSES - 1, original.NUM_CLASSES], np.int32)
    return x, time, {"label": labels}


def sit_variables(state):
    """{"model", "ema"}: what our SiT is applied with."""
    averaged = {"params": state.ema["params"], "constants": state.ema["constants"]}
    return {
        "model": {"params": state.params["backbone"], **state.frozen["backbone"]},
        "ema": averaged,
    }
