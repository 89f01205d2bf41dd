"""Prefetches one batch to the devices in a thread, with a timeout."""

import queue
import threading
from typing import Any

from jax.sharding import Mesh

from repae_jax.errors import TryAgain
from repae_jax.parallel.mesh import place_batch


class Prefetch:
    """Places batches of an iterator on the devices, in a thread of its own."""

    def __init__(self, batches: Any, mesh: Mesh, timeout: float):
        """Start the thread.

        Args:
          batches: an iterator with `get_state()` (see `data.pipeline.train_batches`).
          mesh: the devices.
          timeout: seconds to wait for a batch.
        """
        self._timeout = timeout
        self._state = batches.get_state()
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        # A daemon thread, so that a hanging read cannot keep the process alive.
        self._thread = threading.Thread(target=self._read, args=(batches, mesh), daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, Any]:
        """The next batch, on the devices; errors of the reading thread are raised here.

        Raises:
          TryAgain: the batch took longer than the timeout.
        """
        try:
            batch, self._state, error = self._ready.get(timeout=self._timeout)
        except queue.Empty:
            raise TryAgain(
                f"no batch for {self._timeout:g} s: the data or a process that reads it is stuck "
                "(config.run.data_timeout sets the limit); run the same command to resume from "
                "the last checkpoint"
            ) from None
        if error is not None:
            raise error
        return batch

    @property
    def state(self) -> dict[str, int]:
        """The iterator's state after the last batch that `next` returned."""
        return self._state

    def close(self) -> None:
        """Stop reading, without waiting for the thread."""
        self._closed.set()
        while not self._ready.empty():
            self._ready.get_nowait()

    def _read(self, batches, mesh):
        state = self._state
        while not self._closed.is_set():
            try:
                batch = place_batch(mesh, next(batches))
                state, error = batches.get_state(), None
            except BaseException as raised:  # `__next__` raises it in the waiting thread
                batch, error = None, raised
            self._hand_over((batch, state, error))
            if error is not None:
                break
        batches.close()

    def _hand_over(self, item):
        while not self._closed.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
