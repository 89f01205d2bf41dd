"""DDPM, the discrete diffusion of DiT: a chain of 1,000 steps, its noise, and its lower bound.

Sources: DDPM (arXiv 2006.11239), its learned variances (2102.09672), DiT (2212.09748, section 3.1).
A time t in [0, 1) stands for the step round(1000 t), from 0 to 999.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.models.backbones.dit import STEPS, step_of
from repae_jax.objectives.interpolant import per_image


class Chain(NamedTuple):
    """The coefficients of a chain of N steps, float64 (N,); index 0 is the step next to the data.

    Attributes:
      step: the step of the training chain that the network sees, int.
      alpha_bar, alpha_bar_before: the share of the data's variance after the step and before it.
      log_beta: the log of the step's variance, the upper bound of a learned one.
      log_posterior: the log of q(x_{t-1} | x_t, x)'s variance, the lower bound; at index 0, where
        it is 0, that of index 1; of a chain of one step log_beta.
      from_data, from_noisy: the mean of q(x_{t-1} | x_t, x) is from_data x + from_noisy x_t.
    """

    step: np.ndarray
    alpha_bar: np.ndarray
    alpha_bar_before: np.ndarray
    log_beta: np.ndarray
    log_posterior: np.ndarray
    from_data: np.ndarray
    from_noisy: np.ndarray


@functools.cache
def make_chain(steps: tuple[int, ...] | None = None) -> Chain:
    """The chain through some steps of the training chain, in rising order; None for all.

    Betas rise linearly from 1e-4 to 0.02 over the training chain; a thinned chain has the betas
    that keep alpha_bar at its steps.
    """
    step = np.arange(STEPS) if steps is None else np.asarray(steps)
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, STEPS))[step]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1.0 - alpha_bar / before
    posterior = beta * (1.0 - before) / (1.0 - alpha_bar)
    return Chain(
        step=step,
        alpha_bar=alpha_bar,
        alpha_bar_before=before,
        log_beta=np.log(beta),
        log_posterior=np.log(np.append([*posterior[1:2], beta[0]][0], posterior[1:])),
        from_data=beta * np.sqrt(before) / (1.0 - alpha_bar),
        from_noisy=(1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - alpha_bar),
    )


def _at(column, t):
    return jnp.asarray(column, jnp.float32)[step_of(t)]


@dataclasses.dataclass(frozen=True)
class DDPM:
    """The path x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) n of the chain, whose target is n."""

    name: str = "ddpm"
    predicts: str = "noise"
    steps: int = STEPS

    def alpha(self, t: jax.Array) -> jax.Array:
        """The coefficient of the data."""
        return _at(np.sqrt(make_chain().alpha_bar), t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """The coefficient of the noise."""
        return _at(np.sqrt(1.0 - make_chain().alpha_bar), t)

    def target(self, x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """What the backbone predicts: the noise."""
        return noise


def log_variance(fraction: jax.Array, log_posterior: jax.Array, log_beta: jax.Array) -> jax.Array:
    """The log of the learned variance, between its bounds (arXiv 2102.09672, equation 15).

    Args:
      fraction: the network's output, -1 at the lower bound and 1 at the upper; it may exceed both.
      log_posterior, log_beta: the bounds.
    """
    share = (fraction + 1.0) / 2.0
    return share * log_beta + (1.0 - share) * log_posterior


def variational_bound(
    x: jax.Array, noisy: jax.Array, noise: jax.Array, fraction: jax.Array, t: jax.Array
) -> jax.Array:
    """L_vb of the learned variance in bits per dimension; float32 scalar.

    The mean over images and elements of KL(q(x_{t-1} | x_t, x) || p) or, at step 0, of -log p(x)
    (arXiv 2102.09672, section 3.1). The predicted noise must carry no gradient. The last term
    treats x as bytes scaled to [-1, 1], as DiT's code does with latents.

    Args:
      x: normalized latents (B, h, w, c).
      noisy: x_t (B, h, w, c).
      noise: the predicted noise (B, h, w, c).
      fraction: the network's variance output (B, h, w, c), see `log_variance`.
      t: times (B,).
    """
    chain = make_chain()
    t = per_image(t, x)

    def at(column):
        return _at(column, t)

    data = at(chain.alpha_bar**-0.5) * noisy - at(np.sqrt(1.0 / chain.alpha_bar - 1.0)) * noise
    true_mean = at(chain.from_data) * x + at(chain.from_noisy) * noisy
    mean = at(chain.from_data) * data + at(chain.from_noisy) * noisy
    true_log = at(chain.log_posterior)
    log = log_variance(fraction, true_log, at(chain.log_beta))
    kl = 0.5 * (
        -1.0 + log - true_log + jnp.exp(true_log - log) + (true_mean - mean) ** 2 * jnp.exp(-log)
    )
    bound = jnp.where(step_of(t) == 0, -_log_likelihood(x, mean, 0.5 * log), kl)
    return bound.mean() / np.log(2.0)


_BIN = 1.0 / 255.0  # half the distance of two bytes scaled to [-1, 1]
_LEAST = 1e-12


def _log_likelihood(x, mean, log_scale):
    """log p of bytes scaled to [-1, 1] under a Gaussian (arXiv 2006.11239, equation 13)."""
    above = _normal_cdf(jnp.exp(-log_scale) * (x - mean + _BIN))
    below = _normal_cdf(jnp.exp(-log_scale) * (x - mean - _BIN))
    inside = jnp.log(jnp.maximum(above - below, _LEAST))
    low, high = (jnp.log(jnp.maximum(p, _LEAST)) for p in (above, 1.0 - below))
    return jnp.where(x < -0.999, low, jnp.where(x > 0.999, high, inside))


def _normal_cdf(x):
    """The standard normal's distribution function, by the tanh approximation of GELU."""
    return 0.5 * (1.0 + jnp.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
