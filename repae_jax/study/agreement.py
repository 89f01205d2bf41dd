"""Comparison of a study's results with another machine's, bit by bit."""

import dataclasses
from collections.abc import Mapping, Sequence

from repae_jax.config.storage import differences
from repae_jax.study.results import Result

_SAME = ("figures", "accuracies", "diverged")  # fields that a repeated run reproduces


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of two sets of results, bit by bit.

    Attributes:
      same: number of runs with equal figures.
      apart: a line for each run with different figures, which names the first difference.
      here, there: number of runs that only one side has.
    """

    same: int
    apart: list[str]
    here: int
    there: int

    def __str__(self) -> str:
        both = self.same + len(self.apart)
        lone = f"{self.here} more are only here, {self.there} only there"
        return "\n".join(
            [f"{self.same} of {both} runs have the same figures, bit by bit; {lone}", *self.apart]
        )


def agreement(results: Sequence[Result], others: Sequence[Result]) -> Agreement:
    """Compare the runs of equal arm and seed, except for their times and versions."""
    ours, theirs = ({(r["arm"], r["seed"]): r for r in side} for side in (results, others))
    same, apart = 0, []
    for key in (key for key in ours if key in theirs):
        before, now = (
            {name: _comparable(side[key][name]) for name in _SAME} for side in (theirs, ours)
        )
        told = differences(before, now, "{}:{}".format(*key))
        same += not told
        if told:
            more = f", and {len(told) - 1} more" if len(told) > 1 else ""
            apart.append(told[0] + more)
    return Agreement(same, apart, len(ours.keys() - theirs), len(theirs.keys() - ours))


def _comparable(value):
    """Replace NaN, which differs from itself, by a string, recursively."""
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    return "NaN" if value != value else value
