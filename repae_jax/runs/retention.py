"""Retention of checkpoints: the newest, one per interval, and the last proven one."""

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
# The networks' losses. A loss above EXPLODED times its value in the run's first step (at least 1)
# shows that the run has diverged, even if all values are finite.
LOSSES = ("sit_loss", "vae_loss", "d_loss")
EXPLODED = 100.0


class _Known(TypedDict):
    losses: dict[str, float]
    proven: list[int]
    late: list[int]


class Record:
    """The record of proven and late checkpoints.

    A checkpoint is proven when the step after it has ordinary losses: these losses are computed
    from the checkpoint's state. A run that diverges can go back to the last proven checkpoint, even
    if it has since saved diverged states with finite values.

    Attributes:
      proven: the steps of proven checkpoints.
      late: the steps of checkpoints saved after the end of their interval, because the step at its
        end could not be saved.
    """

    def __init__(self, folder: pathlib.Path, saved: Sequence[int], *, write: bool):
        """Read the record from the checkpoints' folder.

        Args:
          folder: the checkpoints' folder.
          saved: the checkpoints' steps. Without a record, all but the newest count as proven.
          write: whether this process writes the record.
        """
        self._file, self._write = folder / FILE, write
        try:
            stored = read_json(self._file, dict[str, Any])
            known = unseal_if_sealed(stored, source=FILE, way_out="it is made anew")
            check_schema(known, _Known, source=FILE)
            self._losses = known["losses"]
            self.proven, self.late = set(known["proven"]), set(known["late"])
        except UserError:  # missing or damaged
            self._losses, self.proven, self.late = {}, set(sorted(saved)[:-1]), set()
        self.proven &= set(saved)

    @property
    def begun(self) -> bool:
        """Whether the losses of the run's first step are known."""
        return bool(self._losses)

    def judge(self, step: int | None, metrics: Mapping[str, float]) -> None:
        """Judge the checkpoint at `step` by the metrics of the step after it.

        The first call keeps the losses as those of the run's first step. A `step` of None judges no
        checkpoint.
        """
        losses = {name: metrics[name] for name in LOSSES if name in metrics}
        if not self.begun:
            self._losses = losses
        limits = {name: EXPLODED * max(1.0, self._losses.get(name, 1.0)) for name in losses}
        if step is not None and all(losses[name] <= limits[name] for name in losses):
            self.proven.add(step)

    def forget(self, step: int) -> None:
        """Drop the entries of `step`, because another state is saved there."""
        self.proven.discard(step)
        self.late.discard(step)

    def write(self, saved: Sequence[int]) -> None:
        """Write the record, restricted to the checkpoints `saved`."""
        self.proven &= set(saved)
        self.late &= set(saved)
        if self._write:
            lists = {"proven": sorted(self.proven), "late": sorted(self.late)}
            content = json.dumps(seal({"losses": self._losses, **lists}))
            write_atomically(self._file, content.encode())


@dataclasses.dataclass(frozen=True)
class Retention:
    """A preservation policy for Orbax.

    Attributes:
      newest: number of newest checkpoints to keep.
      every: keep checkpoints at multiples of this step, and late ones, forever; 0: none.
      record: the record; its last proven checkpoint is kept.
    """

    newest: int
    every: int
    record: Record

    def should_preserve(self, checkpoints: Sequence, *, context: object) -> list[bool]:
        """For each of the checkpoints, in ascending order, whether to keep it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        proven = [step for step in steps if step in self.record.proven]
        kept = {*steps[-self.newest :], *proven[-1:]}
        if self.every:
            kept |= {s for s in steps if s % self.every == 0 or s in self.record.late}
        return [step in kept for step in steps]
