"""A profiler trace of a few steps, for XProf or TensorBoard's profile tab."""

import pathlib
from collections.abc import Callable, Mapping

import jax

WARM_UP, STEPS = 10, 5  # steps before the trace, and traced steps


class Trace:
    """Traces `STEPS` steps after `WARM_UP` steps, or the last steps of a short run.

    Args:
      folder: TensorBoard's folder of events.
      step: number of completed steps.
      last: the run's last step.
      say: prints a line.
    """

    def __init__(self, folder: pathlib.Path, step: int, last: int, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._first = max(step, min(step + WARM_UP, last - STEPS))
        self._last = min(self._first + STEPS, last)
        self._running = False

    def before(self, step: int, metrics: Mapping[str, jax.Array] | None) -> None:
        """Call this when `step` steps are dispatched, with the last step's metrics."""
        if step == self._first:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Call this when one more step is dispatched, with its metrics."""
        if self._running and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()
            self._say(
                f"traced steps {self._first + 1} to {step}: tensorboard --logdir {self._folder}"
            )

    def close(self) -> None:
        """Stop the trace, if it is running, and write it."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
