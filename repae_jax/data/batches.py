"""Endless batches from a stream of images, for any number of processes (Grain).

`pipeline` imports this module lazily, because it imports Grain.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import typing

import grain

from repae_jax.errors import TryAgain
from repae_jax.utils import signals

_NEXT = "global_next_index"  # key of the state: images that all processes together have consumed
_CAUSES = {  # by exit status: minus the signal's number on Linux
    -7: "batches pass through /dev/shm: make it larger, or lower --config.data.workers",  # SIGBUS
    -9: "the system kills processes when memory is short: lower --config.data.workers",  # SIGKILL
}


class Batches(grain.DatasetIterator):
    """A process's share of every batch of a stream.

    Each process gets its `rows` of every batch; all processes together get the batch of a single
    process. The numbers of processes and workers do not change the batches, so one integer is the
    state of all processes.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        batch_size: int,
        rows: tuple[int, ...],
        read_options: grain.ReadOptions,
        workers: int,
    ):
        super().__init__()
        self._stream = stream
        self._batch_size = batch_size
        self._rows = rows
        self._read_options = read_options
        self._workers = workers
        self._next = 0
        self._reading = None

    def __next__(self) -> typing.Any:
        if self._reading is None:
            self._reading = self._read_from(self._next)
        try:
            batch = next(self._reading)
        except Exception as error:
            # Grain's iterator is unusable after an error; the next call makes a new one
            self.close()
            _raise_if_worker_died(error, self._workers)
            raise
        self._next += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        return {_NEXT: self._next}

    def set_state(self, state: typing.Mapping[str, int]) -> None:
        self.close()
        self._next = state[_NEXT]

    def close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _read_from(self, start):
        own = _Rows(self._stream, start, self._rows, self._batch_size)
        batches = grain.MapDataset.source(own).batch(len(self._rows), drop_remainder=True)
        batches = batches.to_iter_dataset(self._read_options)
        if self._workers:
            options = grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=2
            )
            batches = batches.mp_prefetch(options, worker_init_fn=_live_and_die_with_parent)
        return iter(batches)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """The given rows of every batch of a stream; the first batch begins at image `start`."""

    stream: grain.MapDataset
    start: int
    rows: tuple[int, ...]
    batch_size: int

    def __len__(self) -> int:
        return (len(self.stream) - self.start) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> typing.Any:
        batch, row = divmod(index, len(self.rows))
        return self.stream[self.start + batch * self.batch_size + self.rows[row]]


def _live_and_die_with_parent(index: int, count: int) -> None:
    """Initialize a worker process: it ignores ending signals, and ends with its parent.

    Terminals and schedulers send signals to all processes of a run. The parent catches them and
    needs batches until it has saved a checkpoint, so its workers must live on. Without the thread,
    the workers of a killed parent would wait for it forever.
    """
    del index, count
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _raise_if_worker_died(error: Exception, workers: int) -> None:
    """Raise TryAgain if Grain's error reports a dead worker, which it does within a second."""
    death = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if not death:
        return
    status = int(death[1])
    cause = _CAUSES.get(status, "see the messages above")
    raise TryAgain(
        f"config.data.workers = {workers}: a process that reads images ahead died with exit "
        f"status {status} ({cause})"
    ) from error
