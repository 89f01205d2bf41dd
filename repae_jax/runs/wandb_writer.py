"""Metrics in Weights & Biases, beside TensorBoard: `config.run.wandb` names the project."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from repae_jax.errors import UserError, first_line, warn
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import read_json

FILE = "wandb.json"  # in the work directory: project -> id of the run there
FOLDER = "wandb"  # in the work directory: wandb's own files
STEP = "step"  # the metric that is the x axis
_FINISH_SECONDS = 120.0  # how long the end of a run waits for uploads, also at Python's exit


class WandbWriter:
    """Writes scalars and images to a run of Weights & Biases, with clu's interface of writers.

    A fault of wandb or of the network never ends the training: without an answer at the start, the
    run is written offline; a later fault ends the writing, with one warning. Uploads go on in
    wandb's own process, so that no step waits for them.
    """

    def __init__(self, workdir: pathlib.Path, config: ConfigDict):
        """Open the run of this work directory, or make it.

        Raises:
          UserError: wandb is not logged in.
        """
        self._workdir = workdir
        self._run = _init(workdir, config)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write the scalars of one step."""
        self._log(step, lambda: {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write images, uint8 (N, H, W, 3) under each name."""

        def content():
            import wandb

            return {name: [wandb.Image(one) for one in many] for name, many in images.items()}

        self._log(step, content)

    def flush(self) -> None:
        """Do nothing: wandb's process writes at once."""

    def close(self) -> None:
        """Finish the run, and wait for its uploads up to two minutes."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:  # a timeout, or a fault of wandb's process
            folder = self._workdir / FOLDER
            warn(
                f"Weights & Biases did not take the last metrics ({first_line(error)}): "
                f"`wandb sync {folder}/*run-*` uploads them"
            )

    def _log(self, step, content):
        if self._run is None:
            return
        try:
            self._run.log({**content(), STEP: step})
        except Exception as error:  # anything: training continues
            self._run = None
            warn(
                f"Weights & Biases takes no metrics from step {step} on ({first_line(error)}): "
                "training continues with TensorBoard alone"
            )


def start_over(workdir: pathlib.Path, aside: str) -> None:
    """Make the next start log to a new run of Weights & Biases, as after going back to a step.

    Args:
      workdir: the run's folder.
      aside: the name of the folder in it to which later checkpoints were moved, which then keeps
        the old run; "" for none.
    """
    path = workdir / FILE
    if not path.exists():
        return
    if aside:
        path.rename(workdir / aside / FILE)
    else:
        path.unlink()


def _init(workdir, config):
    import wandb

    entity, _, project = config.run.wandb.rpartition("/")
    options = {
        "project": project,
        "entity": entity or None,
        "id": _run_id(workdir, config.run.wandb),
        "resume": "allow",
        "name": workdir.resolve().name,
        "group": config.name or None,
        "dir": str(workdir),
        "settings": wandb.Settings(
            silent=True,
            console="off",  # the run's lines of text are not captured
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    }
    try:
        run = wandb.init(**options)
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise UserError(
            f"config.run.wandb is {config.run.wandb!r}, but Weights & Biases refuses "
            f"({first_line(error)}): run `wandb login`, or set WANDB_MODE=offline in the "
            "environment, or --config.run.wandb="
        ) from error
    except Exception as error:  # the network, the server or wandb's process
        warn(
            f"Weights & Biases does not answer ({first_line(error)}): metrics are written to "
            f"{workdir / FOLDER}, and `wandb sync {workdir / FOLDER}/offline-run-*` uploads them"
        )
        run = _init_offline(wandb, options)
    if run is not None:
        run.config.update(_plain(config.to_dict()), allow_val_change=True)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
    return run


def _init_offline(wandb, options):
    """A run that is written without a network; None if wandb cannot do that either."""
    with contextlib.suppress(Exception):
        wandb.teardown()
    try:
        return wandb.init(**options, mode="offline")
    except Exception as error:
        warn(
            f"Weights & Biases does not work offline either ({first_line(error)}): "
            "training continues with TensorBoard alone"
        )
        return None


def _plain(value):
    """A value of the configuration as JSON has it; infinity is text there."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _run_id(workdir, project):
    """The id of this work directory's run in a project, the same at every start."""
    path = workdir / FILE
    ids = read_json(path, dict[str, str]) if path.exists() else {}
    if project not in ids:
        ids[project] = secrets.token_hex(4)
        write_atomically(path, (json.dumps(ids, indent=2) + "\n").encode())
    return ids[project]
