"""The steps of a sampler as tables: one row per velocity evaluation, computed in float64.

Euler, Heun and Euler-Maruyama differ only in the numbers of their tables; integrate.py runs them.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from repae_jax.objectives.times import shift_time
from repae_jax.sampling.sampler import Sampler

LAST_SDE_TIME = 0.04  # The score grows as 1/t; the last step, from here to 0, adds no noise.


class Evaluations(NamedTuple):
    """The table of a method: one row for each of its K velocity evaluations; columns are (K,).

    Evaluation k computes the drift d_k at the query point and time t_k; then

        x     += weight d_k + previous_weight d_{k-1} + noise_scale N(0, I)
        query  = x + lookahead d_k
    """

    step: np.ndarray
    time: np.ndarray
    weight: np.ndarray
    previous_weight: np.ndarray
    lookahead: np.ndarray
    noise_scale: np.ndarray


def evaluations(sampler: Sampler) -> tuple[Evaluations, np.ndarray]:
    """The sampler's table (`step` int32, the rest float32) and a mask of guided rows, bool (K,)."""
    times = time_grid(sampler)
    step, time, dt = np.arange(sampler.steps), times[:-1], np.diff(times)
    none = np.zeros_like(dt)
    table = Evaluations(step, time, dt, none, none, none)
    if sampler.stochastic:
        # x += drift dt + sqrt(2 t |dt|) N(0, I); the last step has no noise.
        scale = np.where(step < sampler.steps - 1, np.sqrt(2.0 * time * np.abs(dt)), 0.0)
        table = table._replace(noise_scale=scale)
    elif sampler.method == "heun":
        table = _heun(step, times)
    # By the rule "step", the time at which a Heun step starts decides for both of its evaluations.
    by_step = sampler.guidance_rule == "step"
    guided = guided_rows(sampler, times[table.step] if by_step else table.time)
    as_float32 = [column.astype(np.float32) for column in table[1:]]
    return Evaluations(table.step.astype(np.int32), *as_float32), guided


def _heun(step: np.ndarray, times: np.ndarray) -> Evaluations:
    """Heun's table. A step has two rows: query a full step ahead, then move by the mean drift.

    The last step, which arrives at t = 0, is a plain Euler step with one row.
    """
    dt = np.diff(times)
    first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    table = Evaluations(
        step=np.repeat(step, 2),
        time=np.stack([times[:-1], times[1:]], axis=1).ravel(),
        weight=np.outer(dt / 2, second).ravel(),
        previous_weight=np.outer(dt / 2, second).ravel(),
        lookahead=np.outer(dt, first).ravel(),
        noise_scale=np.zeros(2 * len(dt)),
    )
    table = Evaluations(*(column[:-1] for column in table))
    table.weight[-1], table.lookahead[-1] = dt[-1], 0.0
    return table


def time_grid(sampler: Sampler) -> np.ndarray:
    """Times (steps + 1,) float64 from 1 to `last_time`, evenly spaced before the shift.

    With `smallest_time` they are evenly spaced from 1 to it, and then 0; the SDE's to 0.04.
    """
    smallest = LAST_SDE_TIME if sampler.stochastic else sampler.smallest_time
    if smallest:
        times = np.append(_linspace(1.0, smallest, sampler.steps), 0.0)
    else:
        times = _linspace(1.0, sampler.last_time, sampler.steps + 1)
    return times if sampler.shift == 1.0 else shift_time(times, sampler.shift)


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """Reproduce torch.linspace in float64 bit by bit: from both ends, each point rounded once.

    The last bit matters where a guidance bound is a point of the grid: the original compares the
    bound with the time as torch rounds it, which decides whether the step is guided. numpy's
    linspace rounds differently.
    """
    step = Fraction((stop - start) / (count - 1))
    points = [
        Fraction(start) + step * i if i < count // 2 else Fraction(stop) - step * (count - 1 - i)
        for i in range(count)
    ]
    return np.array([float(point) for point in points])


def segments(guided: np.ndarray) -> list[slice]:
    """Maximal runs of equal values: at most three, since the guidance interval is contiguous."""
    cuts = np.flatnonzero(np.diff(guided)) + 1
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(guided)], strict=True)]


def guided_rows(sampler, times):
    """Which of the steps that begin, or evaluations that lie, at these times are guided."""
    low, high = sampler.guidance_low, sampler.guidance_high
    if sampler.guidance_rule == "evaluation":
        inside = ((low < times) | (low == 0.0)) & ((times < high) | (high == 1.0))
    else:
        inside = (low <= times) & (times <= high)
    return inside & sampler.guided
