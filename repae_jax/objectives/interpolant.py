"""Interpolants between data and noise: the path whose velocity the backbone learns."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

ScalarFunction = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Interpolant:
    """x_t = alpha(t) x + sigma(t) n (arXiv 2401.08740, eq. 1).

    t = 0 is data x, t = 1 is noise n ~ N(0, I). All functions act elementwise.

    Attributes:
      name: the key in `INTERPOLANTS`.
      alpha: t -> the coefficient of the data.
      sigma: t -> the coefficient of the noise.
      d_alpha: the derivative of `alpha` by t.
      d_sigma: the derivative of `sigma` by t.
      time_of_ratio: the inverse of sigma / alpha: a noise level in [0, inf) -> t.
      time_of_sigma: the inverse of `sigma`: a coefficient in [0, 1] -> t.
    """

    name: str
    alpha: ScalarFunction
    sigma: ScalarFunction
    d_alpha: ScalarFunction
    d_sigma: ScalarFunction
    time_of_ratio: ScalarFunction
    time_of_sigma: ScalarFunction

    predicts = "velocity"
    steps = None  # t is continuous

    def target(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """What the backbone predicts: the velocity alpha'(t) x + sigma'(t) n."""
        return self.d_alpha(t) * x + self.d_sigma(t) * noise


_QUARTER_TURN = math.pi / 2

LINEAR = Interpolant(
    name="linear",
    alpha=lambda t: 1.0 - t,
    sigma=lambda t: t,
    d_alpha=lambda t: -jnp.ones_like(t),
    d_sigma=lambda t: jnp.ones_like(t),
    time_of_ratio=lambda ratio: ratio / (1.0 + ratio),
    time_of_sigma=lambda sigma: sigma,
)

COSINE = Interpolant(
    name="cosine",
    alpha=lambda t: jnp.cos(_QUARTER_TURN * t),
    sigma=lambda t: jnp.sin(_QUARTER_TURN * t),
    d_alpha=lambda t: -_QUARTER_TURN * jnp.sin(_QUARTER_TURN * t),
    d_sigma=lambda t: _QUARTER_TURN * jnp.cos(_QUARTER_TURN * t),
    time_of_ratio=lambda ratio: jnp.arctan(ratio) / _QUARTER_TURN,
    time_of_sigma=lambda sigma: jnp.arcsin(sigma) / _QUARTER_TURN,
)

INTERPOLANTS = {"linear": LINEAR, "cosine": COSINE}


def score_from_velocity(
    interpolant: Interpolant, velocity: jax.Array, x: jax.Array, t: jax.Array
) -> jax.Array:
    """The score grad log p_t(x) of a velocity field at `x` (arXiv 2401.08740, section 2).

    Eliminating the conditional means of data and noise from x_t and v gives

        s = (alpha v - alpha' x) / (sigma (alpha' sigma - alpha sigma')).

    This is the usual (alpha/alpha' v - x) / (sigma^2 - alpha/alpha' sigma' sigma), with numerator
    and denominator multiplied by alpha'. So it never divides by alpha', which vanishes at t = 0 on
    the cosine path; and both terms of the denominator have the same sign, so they do not cancel.

    Args:
      interpolant: the path.
      velocity: (B, h, w, c).
      x: noisy latents (B, h, w, c).
      t: times (B,) in (0, 1]; the score is unbounded at t = 0.

    Returns:
      (B, h, w, c).
    """
    t = per_image(t, x)
    alpha, d_alpha = interpolant.alpha(t), interpolant.d_alpha(t)
    sigma, d_sigma = interpolant.sigma(t), interpolant.d_sigma(t)
    return (alpha * velocity - d_alpha * x) / (sigma * (d_alpha * sigma - alpha * d_sigma))


def per_image(t: jax.Array, x: jax.Array) -> jax.Array:
    """(B,) -> (B, 1, ..., 1), to broadcast against `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - 1))
