"""Interpolants between data and noise: the path that the velocity model learns and samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError

ScalarFunction = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Interpolant:
    """x_t = alpha(t) x + sigma(t) n (arXiv 2401.08740, eq. 1).

    t = 0 is data x, t = 1 is noise n ~ N(0, I). All functions act elementwise. `time_of_ratio` is
    the inverse of sigma / alpha: it maps a noise level relative to the data, in [0, inf), to t.
    """

    name: str
    alpha: ScalarFunction
    sigma: ScalarFunction
    d_alpha: ScalarFunction
    d_sigma: ScalarFunction
    time_of_ratio: ScalarFunction


_QUARTER_TURN = math.pi / 2

LINEAR = Interpolant(
    name="linear",
    alpha=lambda t: 1.0 - t,
    sigma=lambda t: t,
    d_alpha=lambda t: -jnp.ones_like(t),
    d_sigma=lambda t: jnp.ones_like(t),
    time_of_ratio=lambda ratio: ratio / (1.0 + ratio),
)

COSINE = Interpolant(
    name="cosine",
    alpha=lambda t: jnp.cos(_QUARTER_TURN * t),
    sigma=lambda t: jnp.sin(_QUARTER_TURN * t),
    d_alpha=lambda t: -_QUARTER_TURN * jnp.sin(_QUARTER_TURN * t),
    d_sigma=lambda t: _QUARTER_TURN * jnp.cos(_QUARTER_TURN * t),
    time_of_ratio=lambda ratio: jnp.arctan(ratio) / _QUARTER_TURN,
)

INTERPOLANTS = {"linear": LINEAR, "cosine": COSINE}


def interpolate(
    interpolant: Interpolant, x: jax.Array, noise: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The noisy latents and the velocity that the model should predict there.

    x_t = alpha(t) x + sigma(t) n and v = alpha'(t) x + sigma'(t) n (arXiv 2401.08740, section 2).
    `x` and `noise` are (B, h, w, c), `t` is (B,) in [0, 1]; both results are (B, h, w, c).
    """
    t = _per_image(t, x)
    x_t = interpolant.alpha(t) * x + interpolant.sigma(t) * noise
    velocity = interpolant.d_alpha(t) * x + interpolant.d_sigma(t) * noise
    return x_t, velocity


def sample_time(
    key: jax.Array,
    batch: int,
    *,
    weighting: Literal["uniform", "lognormal"],
    interpolant: Interpolant,
) -> jax.Array:
    """Training times (batch,) in [0, 1), float32.

    "uniform" draws t itself; "lognormal" draws the noise level sigma / alpha = exp(N(0, 1)), as
    EDM does (section 5), and returns its time: s / (1 + s) on the linear path, 2/pi atan(s) on the
    cosine one. Raises UserError for any other weighting.
    """
    if weighting == "uniform":
        return jax.random.uniform(key, (batch,), jnp.float32)
    if weighting == "lognormal":
        ratio = jnp.exp(jax.random.normal(key, (batch,), jnp.float32))
        return interpolant.time_of_ratio(ratio)
    raise UserError(f"weighting is {weighting!r}: choose 'uniform' or 'lognormal'")


def score_from_velocity(
    interpolant: Interpolant, velocity: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """The score grad log p_t(x) of a velocity field at `x` (arXiv 2401.08740, section 2).

    With the means of data and noise given x_t eliminated from x_t and v, it is

        s = (alpha v - alpha' x) / (sigma (alpha' sigma - alpha sigma')).

    This is the usual (alpha/alpha' v - x) / (sigma^2 - alpha/alpha' sigma' sigma) times
    alpha'/alpha', so that nothing is divided by alpha', which vanishes at t = 0 on the cosine
    path, and the two terms of the denominator have one sign, so that nothing cancels.

    `velocity` and `x` are (B, h, w, c), `t` is (B,) in (0, 1]: the score is unbounded at t = 0.
    """
    t = _per_image(t, x)
    alpha, d_alpha = interpolant.alpha(t), interpolant.d_alpha(t)
    sigma, d_sigma = interpolant.sigma(t), interpolant.d_sigma(t)
    return (alpha * velocity - d_alpha * x) / (sigma * (d_alpha * sigma - alpha * d_sigma))


def _per_image(t: jax.Array, x: jax.Array) -> jax.Array:
    """(B,) -> (B, 1, ..., 1), to broadcast against `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - 1))
