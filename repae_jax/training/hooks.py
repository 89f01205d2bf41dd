"""Hooks: what a run does between its steps. The caller hands them to `loop.train`.

A hook is a function of a `StepEnd`; `default_hooks` makes those of the `train` command.
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
    """A run before its first step: what hooks are made from.

    Nothing has been written yet: a hook that finds its files wrong raises UserError here.

    Attributes:
      config: the run's configuration.
      workdir: its folder.
      models: its networks.
      mesh: the devices.
      processes: those of the job.
      data: what it trains on and is measured with.
      checkpoints: of the work directory; to be used from the first step on.
      logger: writes lines, scalars and images.
      monitor: looks at metrics and samples, and may end the run.
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
    """The metrics of one step, copied from the devices when they are first read.

    Reading waits until the step is done.

    Attributes:
      step: its number, from 1.
      arrays: the metrics by name, on the devices.
    """

    step: int
    arrays: Mapping[str, jax.Array]

    @functools.cached_property
    def _flags(self) -> Mapping[str, jax.Array]:
        return jax.device_get({name: self.arrays[name] for name in ("skipped", "stop")})

    @property
    def skipped(self) -> bool:
        """Whether the step changed nothing, because a value was not finite."""
        return bool(self._flags["skipped"])

    @property
    def stop(self) -> bool:
        """Whether a process of the job asked all of them to stop."""
        return bool(self._flags["stop"])

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """The losses, norms and statistics by name."""
        others = {k: v for k, v in self.arrays.items() if k not in ("skipped", "stop")}
        return {name: float(value) for name, value in jax.device_get(others).items()}


@dataclasses.dataclass(frozen=True)
class StepEnd:
    """A finished step, as a hook sees it.

    Attributes:
      step: completed steps.
      state: the state. The next step takes its memory: keep no reference to it.
      data_state: the batches' position, as `get_state()` of their iterator gives it.
      metrics: of the step; None where this process has made none.
      look: shows metrics to the monitor and the log now, which otherwise happens while the next
        step runs. A hook calls it first if it must not act where the monitor ends the run.
      ending: whether this is meant to be the last step: all are made, or a signal asks to stop.
        After a skipped step the run makes another one.
      done: whether all steps are made and the last one was not skipped.
    """

    step: int
    state: TrainState
    data_state: Mapping[str, int]
    metrics: StepMetrics | None
    look: Callable[[StepMetrics | None], None]
    ending: bool
    done: bool = False


# Called after every step, and once more with `done`; all processes of a job call it alike.
Hook = Callable[[StepEnd], None]
MakeHooks = Callable[[RunContext], Sequence[Hook]]
