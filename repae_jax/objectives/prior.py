"""LSGM: the cross entropy of the latents with a diffusion prior (Vahdat et al., arXiv 2106.05931).

For a path x_t = alpha x + sigma n, a backbone's velocity v_theta and a least time e, the cross
entropy of q(z | x) with the prior p_theta is, in nats,

    CE = E_n int_e^1 w(t) |v_theta(z_t, t) - v|^2 dt + (D / 2) log(2 pi e sigma(e)^2),
    w = alpha / (sigma (alpha sigma' - alpha' sigma)),

which is equation 6 there with its weight g^2 / sigma^2 in units of the velocity's error. The error
of the constant vanishes with e.
"""

import math

import jax
import jax.numpy as jnp

from repae_jax.objectives.interpolant import Interpolant

# How the prior's error is weighted over times.
PRIOR_WEIGHTINGS = ("ll_uniform", "ll_iw", "unweighted")


def prior_times(
    path: Interpolant,
    uniform: jax.Array,
    weighting: str,
    least_time: float,
    noise_scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Times, and the factors of the velocity's squared error, summed over dimensions.

    Args:
      path: the path.
      uniform: random numbers (B,) in [0, 1).
      weighting: "ll_uniform" draws t uniformly from [least_time, 1]; "ll_iw" draws log sigma^2
        uniformly, which keeps the factor small everywhere (arXiv 2106.05931, section 3.2). Both
        estimate the integral of w; LSGM's code leaves 1 - e out of the first. "unweighted" draws t
        uniformly from [0, 1], with a factor of 1.
      least_time: e, in (0, 1).
      noise_scale: the standard deviation of the noise at t = 1.

    Returns:
      (t, factor), (B,) each.
    """
    if weighting == "unweighted":
        return uniform, jnp.ones_like(uniform)
    least, per_noise = jnp.asarray(least_time, uniform.dtype), 1.0 / noise_scale**2
    if weighting == "ll_uniform":
        t = least + (1.0 - least) * uniform
        alpha, sigma = path.alpha(t), path.sigma(t)
        return t, per_noise * (1.0 - least) * alpha / (sigma * _wronskian(path, t))
    log_range = jnp.log(path.sigma(jnp.ones_like(least)) / path.sigma(least))
    t = path.time_of_sigma(path.sigma(least) * jnp.exp(log_range * uniform))
    # The density of t is sigma' / (sigma log_range).
    return t, per_noise * log_range * path.alpha(t) / (path.d_sigma(t) * _wronskian(path, t))


def entropy_at_least_time(path: Interpolant, least_time: float, noise_scale: float) -> jax.Array:
    """(1/2) log(2 pi e sigma(e)^2): the constant of the cross entropy, nats per dimension."""
    sigma = noise_scale * path.sigma(jnp.asarray(least_time, jnp.float32))
    return 0.5 * math.log(2.0 * math.pi * math.e) + jnp.log(sigma)


def _wronskian(path, t):
    """alpha sigma' - alpha' sigma."""
    return path.alpha(t) * path.d_sigma(t) - path.d_alpha(t) * path.sigma(t)
