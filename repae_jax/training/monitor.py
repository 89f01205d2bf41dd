"""Detects divergence and collapse from metrics and samples; warns or ends the run."""

import math
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from repae_jax.errors import Diverged, UserError
from repae_jax.objectives.metrics import METRICS
from repae_jax.sampling.generate import describe_fault

_FIRST = 10  # number of checks whose median is the initial value
_IN_A_ROW = 3  # number of consecutive low values that raise an alarm
_ALIKE = 2.0  # samples with a smaller mean standard deviation, in gray levels, are all alike


class Monitor:
    """Warns of NaN or infinite values and of collapse, or ends the run."""

    def __init__(
        self,
        max_skipped: int,
        on_collapse: str,
        say: Callable[[str], None],
        recovery_command: Callable[[int], str],
    ):
        """Set the limits.

        Args:
          max_skipped: number of consecutive skipped steps that ends the run.
          on_collapse: "warn" or "stop".
          say: prints a line.
          recovery_command: maps a step to the command that continues from a checkpoint before it.
        """
        self.skipped = 0
        self._recovery_command = recovery_command
        self._max_skipped, self._on_collapse, self._say = max_skipped, on_collapse, say
        self._skipped_in_a_row = self._first_skipped = 0
        self._first: dict[str, list[float]] = {}
        self._below: dict[str, list[int]] = {}  # the steps of consecutive low values
        self._differed = 0  # the step of the last samples that were not all alike
        self._broke_first = ""

    def check_step(self, step: int, skipped: bool, read: Callable[[], Mapping[str, float]]) -> None:
        """Count skipped steps; call it after every step.

        Args:
          step: the step's number.
          skipped: whether the step was skipped because of a NaN or infinite value.
          read: returns the step's metrics; called only if they are needed.

        Raises:
          Diverged: `max_skipped` consecutive steps were skipped.
        """
        if not skipped:
            self._skipped_in_a_row = 0
            return
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == 1:
            values = read()
            name = next(n for n in _ordered(values) if not math.isfinite(values[n]))
            self._first_skipped = step
            self._broke_first = f"{name} is {values[name]} at step {step}"
            self._say(f"warning: {self._broke_first}: this step changed nothing")
        if self._skipped_in_a_row >= self._max_skipped:
            command = self._recovery_command(self._first_skipped)
            raise Diverged(
                f"step {step}: {self._skipped_in_a_row} steps in a row had a loss or gradient that "
                f"is not finite, and changed nothing ({self._broke_first} was the first)",
                f"to go back, with lower learning rates: {command}",
            )

    def check_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Check the logged metrics for the collapse of a network or of the latents.

        Raises:
          UserError: a metric has collapsed, and `on_collapse` is "stop".
        """
        for name, metric in METRICS.items():
            if not metric.collapsed or not math.isfinite(values.get(name, math.nan)):
                continue
            first = self._first.setdefault(name, [])
            if not first and values[name] == 0.0:
                continue  # a discriminator that has not started yet
            if len(first) < _FIRST:
                first.append(values[name])
                continue
            at_first = statistics.median(first)
            low = values[name] < metric.collapsed * at_first or values[name] == 0.0
            below = self._below[name] = [*self._below.get(name, []), step] if low else []
            if len(below) == _IN_A_ROW:
                self._raise_alarm(
                    f"step {step}: {name} is {values[name]:.3g}, it was {at_first:.3g} at first: "
                    + ("the latents collapse" if name == "latent_std" else "that network is dead"),
                    since=below[0],
                )

    def check_samples(self, step: int, images: np.ndarray) -> None:
        """Check whether generated images, uint8 (N, H, W, 3), are all alike.

        Raises:
          UserError: they are, and `on_collapse` is "stop".
        """
        spread = float(np.std(images.astype(np.float32), axis=0).mean())
        if spread < _ALIKE:
            self._raise_alarm(
                f"step {step}: the samples of all classes look alike, they differ by "
                f"{spread:.2g} gray levels",
                since=self._differed + 1 if self._differed else step,
            )
        else:
            self._differed = step

    def check_faults(self, step: int, faults: np.ndarray) -> None:
        """Check the faults (N,) of generated images (see `Generated`) for NaN or infinite values.

        Raises:
          UserError: an image has a fault, and `on_collapse` is "stop".
        """
        broken = faults[faults != 0]
        if broken.size:
            self._raise_alarm(
                f"step {step}: {broken.size} of {faults.size} samples are black, of the first "
                f"{describe_fault(broken[0])}",
                since=step,
            )

    def _raise_alarm(self, what, since):
        if self._on_collapse == "stop":
            raise UserError(
                f"{what}; to go back, with lower learning rates: {self._recovery_command(since)} "
                "(--config.run.on_collapse=warn only warns)"
            )
        self._say(f"warning: {what}")


def _ordered(values):
    known = [name for name in METRICS if name in values]
    return known + [name for name in values if name not in METRICS]
