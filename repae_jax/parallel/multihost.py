"""Several processes that do one job together: one per host of a TPU pod, or one per GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from repae_jax.errors import LostProcess, UserError, advise_batch_size, first_line
from repae_jax.utils import signals

if TYPE_CHECKING:
    import numpy as np


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the other processes of the job; call it before anything uses a device.

    `jax.distributed.initialize` finds missing arguments on TPU pods, GKE, Slurm, Open MPI and
    Kubernetes.

    Args:
      coordinator: HOST:PORT of process 0.
      count: the number of processes.
      index: this process's number, from 0.

    Raises:
      UserError: an argument is wrong, or missing where the platform does not provide it. (If the
        other processes do not join, JAX ends this one.)
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
    signals.take_again()  # JAX has replaced the handler of SIGTERM, and would only record it


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process's index and the number of processes; the default is a single process."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is process 0, which does the work that only one process may do."""
        return self.index == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A barrier: all processes end the block before any continues; an error fails them all.

        Raises:
          UserError: the block of another process raised.
        """
        error = None
        try:
            yield
        except Exception as raised:  # the others wait for this process's flag: send it first
            error = raised
        failed = [i for i, bad in enumerate(self._gather(error is not None)) if bad]
        if error is not None:
            raise error
        if failed:
            raise UserError(f"process {failed[0]} of {self.count} failed; its own message says why")

    def from_first(self, value: np.ndarray) -> np.ndarray:
        """The `value` of process 0; its shape and type are the same in all processes."""
        if self.count == 1:
            return value
        from jax.experimental import multihost_utils

        return multihost_utils.broadcast_one_to_all(value)

    @contextlib.contextmanager
    def translate_device_errors(self) -> Iterator[None]:
        """Turn the devices' errors into one-line errors.

        Raises:
          UserError: a batch does not fit the memory.
          LostProcess: another process has ended.
        """
        try:
            with advise_batch_size():
                yield
        except RuntimeError as error:
            if self.count == 1 or type(error).__name__ != "JaxRuntimeError":
                raise
            raise LostProcess(
                "the devices of another process do not answer, it may be gone "
                f"({first_line(error)}); start all processes again to resume"
            ) from error

    def _gather(self, flag):
        if self.count == 1:
            return [flag]
        import numpy as np
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(np.asarray(flag))


ALONE = Processes()


def processes() -> Processes:
    """This process's index, and the number of processes that `start` joined."""
    import jax

    return Processes(jax.process_index(), jax.process_count())
