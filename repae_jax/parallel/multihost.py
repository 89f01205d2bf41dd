"""Several processes that do one thing together: one a host of a TPU pod, or one a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from repae_jax.errors import LostProcess, UserError, batch_size_advised, first_line
from repae_jax.utils import signals

if TYPE_CHECKING:
    import numpy as np


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the other processes of the job; to be called before anything uses a device.

    What is not given comes from the platform: TPU pods, GKE, Slurm, Open MPI, Kubernetes, as
    `jax.distributed.initialize` finds it.

    Args:
      coordinator: HOST:PORT of process 0.
      count: how many processes there are.
      index: which of them this is, from 0.

    Raises:
      UserError: the platform does not tell. (If the others do not come, JAX ends the process.)
    """
    import jax

    if coordinator and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator is {coordinator!r}: give HOST:PORT, such as node0:1234")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"--process-index {index} of --process-count {count}: count from 0")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({first_line(error)}): give --coordinator HOST:PORT, "
            "--process-count and --process-index"
        ) from error
    signals.take_again()  # JAX has taken SIGTERM, and would only note it


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process this is, of how many; the default is one alone."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that does what only one may."""
        return self.index == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process ends before any goes on; an error in one is one in all.

        Raises:
          UserError: another process's block raised.
        """
        error = None
        try:
            yield
        except Exception as raised:  # the others wait: tell them before it goes on its way
            error = raised
        failed = [i for i, bad in enumerate(self._gather(error is not None)) if bad]
        if error is not None:
            raise error
        if failed:
            raise UserError(f"process {failed[0]} of {self.count} failed; its own message says why")

    def from_first(self, value: np.ndarray) -> np.ndarray:
        """The first process's `value`, an array of one shape and type in all of them."""
        if self.count == 1:
            return value
        from jax.experimental import multihost_utils

        return multihost_utils.broadcast_one_to_all(value)

    @contextlib.contextmanager
    def devices_errors_said(self) -> Iterator[None]:
        """The devices' errors as one line: no memory for a batch, or a process that is gone."""
        try:
            with batch_size_advised():
                yield
        except RuntimeError as error:
            if self.count == 1 or type(error).__name__ != "JaxRuntimeError":
                raise
            raise LostProcess(
                "the devices of another process do not answer, it may be gone "
                f"({first_line(error)}); start all processes again to go on"
            ) from error

    def _gather(self, flag):
        if self.count == 1:
            return [flag]
        import numpy as np
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(np.asarray(flag))


ALONE = Processes()


def processes() -> Processes:
    """This process among those that `start` joined."""
    import jax

    return Processes(jax.process_index(), jax.process_count())
