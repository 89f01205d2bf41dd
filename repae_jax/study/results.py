"""What a study found: means and standard errors, effects, and what goes with what."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from repae_jax.atomic import write_atomically
from repae_jax.study.plan import MEASURES

Result = Mapping[str, Any]


def write_results(path: pathlib.Path, results: Sequence[Result]) -> None:
    """All runs, one a line; of their configurations what this module asks for."""
    lines = [
        json.dumps({**result, "config": {"batch_size": result["config"]["batch_size"]}}) + "\n"
        for result in results
    ]
    write_atomically(path, "".join(lines).encode())


def read_results(path: pathlib.Path) -> list[Result]:
    """What `write_results` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    error: standard error of the mean, NaN for one seed.
    """

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "-"
        if math.isnan(self.error):
            return f"{self.value:.4g}"
        if not self.error:
            return f"{self.value:.4g} ± 0"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        if digits > 6:
            return f"{self.value:.4g} ± {self.error:.2g}"
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error of values, which may be none."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return Mean(math.nan, math.nan, 0)
    error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Mean(float(values.mean()), float(error), values.size)


def figure(result: Result, measure: str, step: int) -> float | None:
    """One figure of one run, None where it has none."""
    return result["figures"].get(str(step), {}).get(measure)


def of_arm(results: Sequence[Result], arm: str, measure: str, step: int) -> Mean:
    """An arm's figure over its seeds."""
    values = (figure(r, measure, step) for r in results if r["arm"] == arm)
    return mean([value for value in values if value is not None])


@dataclasses.dataclass(frozen=True)
class Effect:
    """How far one arm is ahead of another, seed by seed.

    Attributes:
      difference: of the better minus the worse arm, or the other way round where less is better.
      better, worse: the arms' own figures.
      ahead: seeds in which it is ahead.
    """

    difference: Mean
    better: Mean
    worse: Mean
    ahead: int


def effect(results: Sequence[Result], claim: ConfigDict, step: int) -> Effect:
    """A claim's effect at a step, over the seeds that both arms have."""
    sides = []
    for arm in (claim.better, claim.worse):
        found = {r["seed"]: figure(r, claim.measure, step) for r in results if r["arm"] == arm}
        sides.append({seed: value for seed, value in found.items() if value is not None})
    seeds = sorted(sides[0].keys() & sides[1].keys())
    sign = -1.0 if MEASURES[claim.measure][1] is False else 1.0
    differences = [sign * (sides[0][seed] - sides[1][seed]) for seed in seeds]
    return Effect(
        difference=mean(differences),
        better=mean([sides[0][seed] for seed in seeds]),
        worse=mean([sides[1][seed] for seed in seeds]),
        ahead=sum(value > 0 for value in differences),
    )


def work(result: Result, step: int) -> float:
    """TFLOP that a run has spent up to a step, the VAE's own training left out."""
    return result["gflop_per_image"] * result["config"]["batch_size"] * step / 1e3


def at_work(results: Sequence[Result], arm: str, measure: str, spent: float) -> Mean:
    """An arm's figure after so many TFLOP, between its measured steps along the logarithm."""
    values = []
    for result in (r for r in results if r["arm"] == arm):
        points = [
            (work(result, int(step)), figures[measure])
            for step, figures in result["figures"].items()
            if measure in figures
        ]
        points.sort()
        if points and points[0][0] <= spent <= points[-1][0] * (1 + 1e-9):
            x, y = zip(*points, strict=True)
            values.append(float(np.interp(math.log(spent), np.log(x), y)))
    return mean(values)


@dataclasses.dataclass(frozen=True)
class Correlation:
    """How two measures go together over runs.

    pearson: of the first one's values and the logarithms of the second one's, NaN where one is 0.
    spearman: of the ranks.
    count: runs.
    """

    pearson: float
    spearman: float
    count: int


def correlation(results: Sequence[Result], first: str, second: str, step: int) -> Correlation:
    """Of two measures at a step, over all runs that have both; NaN for fewer than three."""
    from scipy import stats

    pairs = [(figure(r, first, step), figure(r, second, step)) for r in results]
    pairs = [pair for pair in pairs if None not in pair]
    if len(pairs) < 3:
        return Correlation(math.nan, math.nan, len(pairs))
    x, y = np.array(pairs).T
    pearson = stats.pearsonr(x, np.log(y)).statistic if (y > 0).all() else math.nan
    return Correlation(float(pearson), float(stats.spearmanr(x, y).statistic), len(pairs))
