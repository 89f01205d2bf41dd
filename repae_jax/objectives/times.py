"""The distribution of the training times, and the shift of times toward noise."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.objectives.paths import PATHS

WEIGHTINGS = ("uniform", "lognormal")


@dataclasses.dataclass(frozen=True)
class Times:
    """The distribution of the training times t in [0, 1]; t = 1 is noise.

    Attributes:
      weighting: "uniform", or "lognormal": the noise level s = sigma / alpha of the interpolant is
        exp(mean + scale N(0, 1)), as in EDM (arXiv 2206.00364, section 5). On the linear path that
        is the logit-normal distribution of t (arXiv 2403.03206, equation 19).
      mean, scale: of log s, for "lognormal".
      highest: the distribution is truncated to t <= highest, in (0, 1].
      grid: times are rounded up to multiples of 1 / grid, from 1 / grid to 1, before the shift
        (fuse-dit, 1000); 0 leaves them as they are.
      shift: multiplies the odds t / (1 - t) of every time, after truncation and rounding; see
        `shift_time`.

    Raises:
      UserError: an unknown weighting, or a value out of range.
    """

    weighting: str = "uniform"
    mean: float = 0.0
    scale: float = 1.0
    highest: float = 1.0
    grid: int = 0
    shift: float = 1.0

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            choices = " or ".join(map(repr, WEIGHTINGS))
            raise UserError(f"config.time.weighting is {self.weighting!r}: use {choices}")
        if self.weighting == "uniform" and (self.mean, self.scale) != (0.0, 1.0):
            raise UserError(
                f"config.time.mean is {self.mean} and config.time.scale is {self.scale}: they are "
                "read with --config.time.weighting=lognormal, so set that, or use 0 and 1"
            )
        if not math.isfinite(self.mean):
            raise UserError(f"config.time.mean is {self.mean}: give a finite number")
        if not 0.0 < self.scale < math.inf:
            raise UserError(f"config.time.scale is {self.scale}: give a finite number above 0")
        if not 0.0 < self.highest <= 1.0:
            raise UserError(f"config.time.highest is {self.highest}: give a time in (0, 1]")
        if self.grid < 0:
            raise UserError(
                f"config.time.grid is {self.grid}: give a number of times, or 0 for all of [0, 1]"
            )
        check_shift(self.shift, "config.time.shift")

    def sample(self, key: jax.Array, batch: int, interpolant: str) -> jax.Array:
        """Random times (batch,) float32, for a key of `PATHS`; of a chain, those of its steps."""
        path, shape = PATHS[interpolant], (batch,)
        if self.weighting == "uniform":
            t = jax.random.uniform(key, shape, jnp.float32)
            t = t * self.highest if self.highest < 1.0 else t
            t = jnp.floor(t * path.steps) / path.steps if path.steps else t
        else:
            if self.highest < 1.0:
                level = float(path.sigma(self.highest) / path.alpha(self.highest))
                upper = (math.log(level) - self.mean) / self.scale
                drawn = jax.random.truncated_normal(key, -jnp.inf, upper, shape, jnp.float32)
            else:
                drawn = jax.random.normal(key, shape, jnp.float32)
            t = path.time_of_ratio(jnp.exp(self.mean + self.scale * drawn))
        if self.grid:
            t = jnp.maximum(jnp.ceil(t * self.grid), 1.0) / self.grid
        return shift_time(t, self.shift) if self.shift != 1.0 else t


def shift_time(t, shift: float):
    """Multiply the odds t / (1 - t) by `shift`: t' = shift t / (1 + (shift - 1) t).

    A shift above 1 moves times toward noise, t = 1 (arXiv 2403.03206, equation 23).

    Args:
      t: times in [0, 1], of jax or numpy.
      shift: above 0.
    """
    return shift * t / (1.0 + (shift - 1.0) * t)


def check_shift(shift: float, name: str) -> None:
    """Raise UserError, with the value's name, unless a shift is a finite number above 0."""
    if not 0.0 < shift < math.inf:
        raise UserError(f"{name} is {shift}: give a finite number above 0 (1 shifts nothing)")


def check_times(times: Times, interpolant: str) -> None:
    """Raise UserError for times that a path does not have."""
    if PATHS[interpolant].steps and times != UNIFORM:
        raise UserError(
            f"config.time is {times}, but the steps of config.objective.interpolant "
            f"{interpolant!r} are drawn uniformly: leave config.time as it is"
        )


UNIFORM = Times()
