"""What a run does between its steps is up to hooks, which the caller hands to `loop.train`.

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

    Nothing has been written yet, so that a hook can raise a UserError for what is wrong with its
    own files.

    Attributes:
      config: the run's configuration.
      workdir: its folder.
      models: its networks.
      mesh: the devices.
      processes: those of the job.
      data: what it trains on and is measured with.
      checkpoints: of the work directory; not to be used before the first step.
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
    """The metrics of one step, brought from the devices when they are first asked for.

    Reading them waits until the step is done.

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
        """All the others by name."""
        others = {k: v for k, v in self.arrays.items() if k not in ("skipped", "stop")}
        return {name: float(value) for name, value in jax.device_get(others).items()}


@dataclasses.dataclass(frozen=True)
class StepEnd:
    """A run behind a step.

    Attributes:
      step: steps that are made.
      state: the state. The next step takes its memory: keep no reference to it.
      data_state: where the batches stand, as `get_state()` of their iterator gives it.
      metrics: of the step; None where the run has not made one since it started.
      look: shows metrics to the monitor and the log at once; else that waits for the next step to
        run. For a hook that must not act if the monitor ends the run.
      ending: whether no step is to follow, because all are made or a signal asks to stop. If this
        step was skipped, another one follows nevertheless.
      done: whether all steps are made, and the last of them was not skipped.
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
