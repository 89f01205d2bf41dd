"""Detects divergence and collapse from metrics and samples; warns or ends the run."""

import math
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from repae_jax.errors import Diverged, UserError
from repae_jax.objectives.metrics import METRICS
from repae_jax.sampling.generate import describe_fault

_FIRST = 10  # looks that make "at first"
_IN_A_ROW = 3  # looks that make an alarm
_ALIKE = 2.0  # samples that differ by fewer grey levels than this, on average, are all alike


class Monitor:
    """Warns of steps that are not finite and of collapse, or ends the run."""

    def __init__(
        self,
        max_skipped: int,
        on_collapse: str,
        say: Callable[[str], None],
        way_back: Callable[[int], str],
    ):
        """Watch.

        Args:
          max_skipped: steps in a row that may be skipped for a value that is not finite.
          on_collapse: "warn", or "stop".
          say: prints a line.
          way_back: the command that continues from before a step.
        """
        self.skipped = 0
        self._way_back = way_back
        self._max_skipped, self._on_collapse, self._say = max_skipped, on_collapse, say
        self._skipped_in_a_row = self._first_skipped = 0
        self._first: dict[str, list[float]] = {}
        self._below: dict[str, list[int]] = {}  # the steps of the looks in a row
        self._differed = 0  # the step of the last samples that did
        self._broke_first = ""

    def step(self, step: int, skipped: bool, read: Callable[[], Mapping[str, float]]) -> None:
        """After every step: was it skipped?

        Args:
          step: its number.
          skipped: whether it changed nothing, since a value was not finite.
          read: gives the step's metrics, if they are needed.

        Raises:
          Diverged: too many in a row were.
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
            raise Diverged(
                f"step {step}: {self._skipped_in_a_row} steps in a row had a loss or gradient that "
                f"is not finite, and changed nothing ({self._broke_first} was the first)",
                f"to go back, with lower learning rates: {self._way_back(self._first_skipped)}",
            )

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """At the metrics that are logged: has a network or the latents collapsed?

        Raises:
          UserError: one has, and `on_collapse` is "stop".
        """
        for name, metric in METRICS.items():
            if not metric.collapsed or not math.isfinite(values.get(name, math.nan)):
                continue
            first = self._first.setdefault(name, [])
            if not first and values[name] == 0.0:
                continue  # it has not begun: a discriminator that joins later
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

    def look_at_samples(self, step: int, images: np.ndarray) -> None:
        """At generated images, uint8 (N, H, W, 3): are they all the same?

        Raises:
          UserError: they are, and `on_collapse` is "stop".
        """
        spread = float(np.std(images.astype(np.float32), axis=0).mean())
        if spread < _ALIKE:
            self._raise_alarm(
                f"step {step}: the samples of all classes look alike, they differ by "
                f"{spread:.2g} grey levels",
                since=self._differed + 1 if self._differed else step,
            )
        else:
            self._differed = step

    def look_at_faults(self, step: int, faults: np.ndarray) -> None:
        """At the faults (N,) of generated images, see `Generated`: are all images finite?

        Raises:
          UserError: one is not, and `on_collapse` is "stop".
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
                f"{what}; to go back, with lower learning rates: {self._way_back(since)} "
                "(--config.run.on_collapse=warn only says it)"
            )
        self._say(f"warning: {what}")


def _ordered(values):
    known = [name for name in METRICS if name in values]
    return known + [name for name in values if name not in METRICS]
