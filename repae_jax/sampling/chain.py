"""Samplers of the discrete chain of DDPM: ancestral sampling, and DDIM's deterministic steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.objectives.ddpm import STEPS, log_variance, make_chain

METHODS = ("ddpm", "ddim")


def chain_steps(method: str, count: int) -> tuple[int, ...]:
    """The steps of the training chain that `count` sampling steps visit, in rising order.

    "ddpm" spreads them evenly from 0 to 999, each rounded to an even number in a tie (arXiv
    2102.09672, section 4); "ddim" takes every i-th step from 0, for the i that gives exactly
    `count` (arXiv 2010.02502, appendix D.2).

    Raises:
      UserError: there are no such steps.
    """
    if not 1 <= count <= STEPS:
        raise UserError(f"steps is {count}: {method} takes 1 to {STEPS}")
    if method == "ddim":
        for stride in range(1, STEPS):
            if len(range(0, STEPS, stride)) == count:
                return tuple(range(0, STEPS, stride))
        possible = sorted({len(range(0, STEPS, stride)) for stride in range(1, STEPS)})
        near = min(possible, key=lambda steps: abs(steps - count))
        raise UserError(
            f"steps is {count}, but no whole stride of ddim through {STEPS} steps gives that "
            f"number: use {near}"
        )
    stride = (STEPS - 1) / (count - 1) if count > 1 else 1.0
    place, steps = 0.0, []
    for _ in range(count):
        steps.append(round(place))
        place += stride
    return tuple(steps)


class ChainRows(NamedTuple):
    """The table of a chain sampler, one row for each step; columns are (N,), from noise to data.

    With eps and f the network's noise and variance fraction at `time`:

        x0 = data_x x - data_noise eps
        x  = keep_data x0 + keep_x x + keep_noise eps + noise_scale exp(log_variance(f) / 2) N(0, I)

    A network without f has the variance beta.
    """

    step: np.ndarray
    time: np.ndarray
    data_x: np.ndarray
    data_noise: np.ndarray
    keep_data: np.ndarray
    keep_x: np.ndarray
    keep_noise: np.ndarray
    noise_scale: np.ndarray
    log_posterior: np.ndarray
    log_beta: np.ndarray


def chain_rows(method: str, count: int) -> ChainRows:
    """The table of a method, `step` int32 and the rest float32."""
    chain = make_chain(chain_steps(method, count))
    none = np.zeros(count)
    if method == "ddim":
        keep = (
            np.sqrt(chain.alpha_bar_before),
            none,
            np.sqrt(1.0 - chain.alpha_bar_before),
            none,
        )
    else:
        keep = (chain.from_data, chain.from_noisy, none, (np.arange(count) > 0).astype(float))
    columns = (
        chain.step / STEPS,
        chain.alpha_bar**-0.5,
        np.sqrt(1.0 / chain.alpha_bar - 1.0),
        *keep,
        chain.log_posterior,
        chain.log_beta,
    )
    as_float32 = [column[::-1].astype(np.float32) for column in columns]
    return ChainRows(np.arange(count, dtype=np.int32), *as_float32)


def advance(predict, noise_of_step, x: jax.Array, row: ChainRows) -> jax.Array:
    """One step of a chain sampler.

    Args:
      predict: (x, time) -> the noise (B, h, w, c), or the noise and behind it the variance
        fraction (B, h, w, 2 c).
      noise_of_step: step -> standard normal noise (B, h, w, c); None for a deterministic step.
      x: the noisy latents (B, h, w, c).
      row: the step's row.
    """
    output = predict(x, row.time)
    noise, fraction = output[..., : x.shape[-1]], output[..., x.shape[-1] :]
    data = row.data_x * x - row.data_noise * noise
    moved = row.keep_data * data + row.keep_x * x + row.keep_noise * noise
    if noise_of_step is None:
        return moved
    log = row.log_beta
    if fraction.size:
        log = log_variance(fraction, row.log_posterior, row.log_beta)
    return moved + row.noise_scale * jnp.exp(0.5 * log) * noise_of_step(row.step)
