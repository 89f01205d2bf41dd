"""The results of a study: means and standard errors, effects, and correlations."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic asks for these before Python 3.12
)

import numpy as np
from ml_collections import ConfigDict
from pydantic import Field
from typing_extensions import TypedDict

from repae_jax.errors import UserError
from repae_jax.study.plan import MEASURES
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import Batch, Text, check_schema, parse_json, real
from repae_jax.utils.sealed import seal, unseal_if_sealed

Step = Annotated[str, Field(pattern=r"^\d{1,12}$")]


Figures = Annotated[dict[str, float], Field(min_length=1)]


class RunConfig(TypedDict):
    """The keys of a run's configuration that comparisons need; the file holds all keys."""

    batch_size: Batch


class Result(TypedDict):
    """The result of one run of a study, as `run.run_job` writes it."""

    arm: Text
    seed: int
    config: RunConfig
    made_with: NotRequired[dict[str, Any]]
    accuracies: dict[str, float]
    gflop_per_image: real(0)
    diverged: str
    figures: dict[Step, Figures]
    seconds: NotRequired[dict[str, float]]


def write_results(path: pathlib.Path, results: Sequence[Result]) -> None:
    """Write the results of all runs, one per line, each with a checksum."""
    lines = [json.dumps(seal(result)) + "\n" for result in results]
    write_atomically(path, "".join(lines).encode())


def read_results(path: pathlib.Path) -> list[Result]:
    """Read the file of `write_results`; files of older versions have no checksums.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    results = {}
    try:
        for source, line in ((f"line {n}", line) for n, line in enumerate(lines, 1)):
            result = check_result(parse_json(line, source=source), source=source)
            key = result["arm"], result["seed"]
            if key in results:
                raise UserError(f"{source} has {key[0]}:{key[1]} once more; remove one of them")
            results[key] = result
    except UserError as error:
        raise UserError(f"{path} does not hold the results of a study: {error}") from error
    return list(results.values())


def check_result(content: Any, *, source: str) -> Result:
    """Check a run's result from parsed JSON, with or without a checksum; returns it.

    Raises:
      UserError: the content is damaged, or no result.
    """
    if isinstance(content, dict):
        way_out = "restore it, or have it made again"
        content = unseal_if_sealed(content, source=source, way_out=way_out)
    check_schema(content, Result, source=f"{source}: ")
    if not (content["figures"] or content["diverged"]):
        raise UserError(f"{source}: has no figures, though the run has not diverged")
    return content


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
      value: the mean; NaN without values.
      error: the standard error of the mean; NaN for fewer than two seeds.
      count: number of seeds.
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
        return f"{self._digits(self.value)} ± {self._digits(self.error, '.2g')}"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval by Student's distribution; NaN for fewer than two."""
        from scipy import stats

        if self.count < 2:
            return math.nan, math.nan
        half = float(stats.t.ppf(0.975, self.count - 1)) * self.error
        return self.value - half, self.value + half

    def shown_interval(self) -> str:
        """The interval as "LOW to HIGH", rounded as the error allows; "-" for fewer than two."""
        if self.count < 2:
            return "-"
        low, high = self.interval
        return f"{self._digits(low)} to {self._digits(high)}"

    def _digits(self, value, tiny=".4g"):
        """A value, rounded to the second digit of the error."""
        if not self.error:
            return f"{value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{value:.{digits}f}" if digits <= 6 else f"{value:{tiny}}"


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error of any number of values, including none."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return Mean(math.nan, math.nan, 0)
    error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Mean(float(values.mean()), float(error), values.size)


def figure(result: Result, measure: str, step: int) -> float | None:
    """A measure of a run at a step; None if it is missing."""
    return result["figures"].get(str(step), {}).get(measure)


def arm_mean(results: Sequence[Result], arm: str, measure: str, step: int) -> Mean:
    """The mean of an arm's measure over its seeds."""
    values = (figure(r, measure, step) for r in results if r["arm"] == arm)
    return mean([value for value in values if value is not None])


@dataclasses.dataclass(frozen=True)
class Effect:
    """The advantage of one arm over another, seed by seed.

    Attributes:
      difference: the better minus the worse arm, or the reverse if smaller is better.
      better, worse: the arms' own means over the same seeds.
      ahead: number of seeds with the better arm ahead, including those where only the worse arm
        diverged.
      diverged: number of seeds where only one arm diverged; the means exclude them.
    """

    difference: Mean
    better: Mean
    worse: Mean
    ahead: int
    diverged: int

    @property
    def verdict(self) -> str:
        """The verdict: "ahead" or "behind" if the 95 % interval excludes 0, else "open"."""
        low, high = self.difference.interval
        return "ahead" if low > 0 else "behind" if high < 0 else "open"


def effect(results: Sequence[Result], claim: ConfigDict, step: int) -> Effect:
    """Compute a claim's effect at a step, over the seeds that both arms have."""
    sides, lost = [], []
    for arm in (claim.better, claim.worse):
        own = {r["seed"]: r for r in results if r["arm"] == arm}
        found = {seed: figure(r, claim.measure, step) for seed, r in own.items()}
        sides.append({seed: value for seed, value in found.items() if value is not None})
        lost.append({s for s, r in own.items() if r["diverged"] and found[s] is None})
    won = lost[1] & sides[0].keys()
    alone = won | (lost[0] & sides[1].keys())
    seeds = sorted(sides[0].keys() & sides[1].keys())
    sign = -1.0 if MEASURES[claim.measure][1] is False else 1.0
    differences = [sign * (sides[0][seed] - sides[1][seed]) for seed in seeds]
    return Effect(
        difference=mean(differences),
        better=mean([sides[0][seed] for seed in seeds]),
        worse=mean([sides[1][seed] for seed in seeds]),
        ahead=sum(value > 0 for value in differences) + len(won),
        diverged=len(alone),
    )


def work(result: Result, step: int) -> float:
    """The TFLOP that a run has spent up to a step, excluding its VAE's own training."""
    return result["gflop_per_image"] * result["config"]["batch_size"] * step / 1e3


def at_work(results: Sequence[Result], arm: str, measure: str, spent: float) -> Mean:
    """The mean of an arm's measure after `spent` TFLOP, interpolated in the logarithm of work."""
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
    """The correlation of two measures over runs.

    Attributes:
      pearson: Pearson's coefficient of the first measure and the logarithm of the second; NaN if a
        value of the second is 0.
      spearman: Spearman's rank coefficient.
      count: number of runs.
      arms_spearman: Spearman's coefficient of the arms' means, because runs of an arm are alike.
      arms: number of arms.
    """

    pearson: float
    spearman: float
    count: int
    arms_spearman: float
    arms: int


def correlation(results: Sequence[Result], first: str, second: str, step: int) -> Correlation:
    """Correlate two measures at a step, over all runs that have both; NaN for fewer than three."""
    from scipy import stats

    by_arm: dict[str, list[tuple[float, float]]] = {}
    for r in results:
        pair = figure(r, first, step), figure(r, second, step)
        if None not in pair:
            by_arm.setdefault(r["arm"], []).append(pair)
    pairs = np.array([pair for own in by_arm.values() for pair in own]).reshape(-1, 2)
    means = np.array([np.mean(own, axis=0) for own in by_arm.values()]).reshape(-1, 2)

    def ranked(points):
        return float(stats.spearmanr(*points.T).statistic) if len(points) > 2 else math.nan

    logarithmic = len(pairs) > 2 and (pairs[:, 1] > 0).all()
    pearson = (
        stats.pearsonr(pairs[:, 0], np.log(pairs[:, 1])).statistic if logarithmic else math.nan
    )
    return Correlation(float(pearson), ranked(pairs), len(pairs), ranked(means), len(means))
