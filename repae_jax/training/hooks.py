"""Hooks: functions of a `StepEnd` that a run calls between its steps.

The caller passes them to `loop.train`; `default_hooks` makes the hooks of the `train` command.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.models.networks import Models
from repae_jax.parallel.multihost import Processes
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.run_data import RunData
from repae_jax.runs.state import TrainState
from repae_jax.training.logger import Logger
from repae_jax.training.monitor import Monitor


@dataclasses.dataclass(frozen=True, eq=False)
class RunContext:
    """A run before its first step, from which hooks are made.

    The run has written nothing yet, so the constructor of a hook raises UserError for its files.

    Attributes:
      config: the run's configuration.
      workdir: its folder.
      models: its networks.
      mesh: the devices.
      processes: the processes of the job.
      data: the training split and the held-out split.
      checkpoints: the checkpoints of the work directory, for use from the first step on.
      logger: writes lines, scalars and images.
      monitor: checks metrics and samples, and may end the run.
    """

    config: ConfigDict
    workdir: pathlib.Path
    models: Models
    mesh: Mesh
    processes: Processes
    data: RunData
    checkpoints: Checkpoints
    logger: Logger
    monitor: Monitor


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """The metrics of one step, copied from the devices at the first access, after the step.

    Attributes:
      step: the step's number, from 1.
      arrays: metric -> scalar on the devices.
    """

    step: int
    arrays: Mapping[str, jax.Array]

    @functools.cached_property
    def _flags(self) -> Mapping[str, jax.Array]:
        return jax.device_get({name: self.arrays[name] for name in ("skipped", "stop")})

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped because a loss or gradient was NaN or infinite."""
        return bool(self._flags["skipped"])

    @property
    def stop(self) -> bool:
        """Whether a process of the job requested all processes to stop."""
        return bool(self._flags["stop"])

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """Losses, norms and statistics by name."""
        others = {k: v for k, v in self.arrays.items() if k not in ("skipped", "stop")}
        return {name: float(value) for name, value in jax.device_get(others).items()}


@dataclasses.dataclass(frozen=True)
class StepEnd:
    """A finished step, the argument of hooks.

    Attributes:
      step: number of completed steps.
      state: the state. The next step reuses its memory: keep no reference to it.
      data_state: the position in the data, from the batches' `get_state()`.
      metrics: the step's metrics; None if this process has made no step.
      report: passes metrics to the monitor and the log now, which otherwise happens during the next
        step. A hook calls it first if the monitor must be able to end the run before the hook acts.
      ending: whether the run plans to end here, after the last step or on a signal. After a skipped
        step the run makes another one.
      done: whether all steps are completed; a hook receives this in an additional last call.
    """

    step: int
    state: TrainState
    data_state: Mapping[str, int]
    metrics: StepMetrics | None
    report: Callable[[StepMetrics | None], None]
    ending: bool
    done: bool = False


# Called after every step, and once more with `done`; all processes of a job make the same calls.
Hook = Callable[[StepEnd], None]
MakeHooks = Callable[[RunContext], Sequence[Hook]]
