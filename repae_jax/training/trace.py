"""A profiler's trace of a few steps, for XProf or TensorBoard's profile tab."""

import pathlib
from collections.abc import Callable, Mapping

import jax

WARM_UP, STEPS = 10, 5  # steps of a start before the traced ones, and traced ones


class Trace:
    """Traces `STEPS` steps of a run once `WARM_UP` have been made, or of a short run the last ones.

    Args:
      folder: where TensorBoard looks for events.
      step: the number of steps that the run has made.
      last: at which it ends.
      say: takes a line for the user.
    """

    def __init__(self, folder: pathlib.Path, step: int, last: int, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._first = max(step, min(step + WARM_UP, last - STEPS))
        self._last = min(self._first + STEPS, last)
        self._running = False

    def before(self, step: int, metrics: Mapping[str, jax.Array] | None) -> None:
        """To be called when `step` steps are begun, with the last one's metrics."""
        if step == self._first:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """To be called when another step is begun, with its metrics."""
        if self._running and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()
            self._say(
                f"traced steps {self._first + 1} to {step}: tensorboard --logdir {self._folder}"
            )

    def close(self) -> None:
        """Write what has been traced."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
