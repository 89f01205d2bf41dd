"""Which checkpoints stay: the newest, those at intervals, and the last one that is proven."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import check_schema, read_json
from repae_jax.utils.sealed import seal, unseal_if_sealed

FILE = "record.json"  # beside the checkpoints
# What the networks minimise. A checkpoint at which one of them is this many times what it was in
# the run's first step (at least 1) holds values that are finite and of no use.
LOSSES = ("sit_loss", "vae_loss", "d_loss")
EXPLODED = 100.0


class _Known(TypedDict):
    losses: dict[str, float]
    proven: list[int]
    late: list[int]


class Record:
    """What is known of the checkpoints beside their content.

    A checkpoint is proven when the step that was taken from it found ordinary losses, which tell
    of the state before that step. So a run that diverges knows where to go back to, even if it
    has saved states that were finite still and of no use.

    Attributes:
      proven: the steps of those that are.
      late: the steps of those that belong to an interval's end at which nothing could be saved.
    """

    def __init__(self, folder: pathlib.Path, saved: Sequence[int], *, write: bool):
        """Read it from the checkpoints' folder.

        Args:
          folder: where they are.
          saved: their steps. Of a run from before there was a record, all but the newest count
            as proven.
          write: whether this process may write.
        """
        self._file, self._write = folder / FILE, write
        try:
            stored = read_json(self._file, dict[str, Any])
            known = unseal_if_sealed(stored, source=FILE, way_out="it is made anew")
            check_schema(known, _Known, source=FILE)
            self._losses = known["losses"]
            self.proven, self.late = set(known["proven"]), set(known["late"])
        except UserError:  # not there, or damaged
            self._losses, self.proven, self.late = {}, set(sorted(saved)[:-1]), set()
        self.proven &= set(saved)

    @property
    def begun(self) -> bool:
        """Whether the losses of the run's first step are known."""
        return bool(self._losses)

    def judge(self, step: int | None, metrics: Mapping[str, float]) -> None:
        """Take the metrics of the first step from the checkpoint of `step`, or of the run's."""
        losses = {name: metrics[name] for name in LOSSES if name in metrics}
        if not self.begun:
            self._losses = losses
        limits = {name: EXPLODED * max(1.0, self._losses.get(name, 1.0)) for name in losses}
        if step is not None and all(losses[name] <= limits[name] for name in losses):
            self.proven.add(step)

    def forget(self, step: int) -> None:
        """Another state is saved under a step that one was known of."""
        self.proven.discard(step)
        self.late.discard(step)

    def write(self, saved: Sequence[int]) -> None:
        """Write it, as far as it is of the steps `saved`."""
        self.proven &= set(saved)
        self.late &= set(saved)
        if self._write:
            lists = {"proven": sorted(self.proven), "late": sorted(self.late)}
            content = json.dumps(seal({"losses": self._losses, **lists}))
            write_atomically(self._file, content.encode())


@dataclasses.dataclass(frozen=True)
class Retention:
    """Orbax' policy of preservation.

    Attributes:
      newest: how many of the newest stay.
      every: those at multiples of this stay for ever, and those that are late for one; 0: none.
      record: the last one that is proven stays.
    """

    newest: int
    every: int
    record: Record

    def should_preserve(self, checkpoints: Sequence, *, context: object) -> list[bool]:
        """Which of the checkpoints, the first first, stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        proven = [step for step in steps if step in self.record.proven]
        kept = {*steps[-self.newest :], *proven[-1:]}
        if self.every:
            kept |= {s for s in steps if s % self.every == 0 or s in self.record.late}
        return [step in kept for step in steps]
