"""BatchNorm with PyTorch's running statistics, and LatentNorm, which is based on it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

LATENT_EPSILON = 1e-4  # added to the variance of a channel, as in the original


class BatchNorm(nn.Module):
    """Normalizes (B, H, W, C) per channel; running statistics live in `batch_stats`.

    With `positions` (H, W) it normalizes each position of a channel by statistics of its own.

    Flax's own BatchNorm keeps the biased variance. PyTorch, and so every published checkpoint,
    keeps the unbiased variance: running = (1 - momentum) * running + momentum * var * n / (n - 1).
    Statistics are float32; a sharded batch has the statistics of the global batch.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    affine: bool = True
    scale_init: initializers.Initializer = initializers.ones
    dtype: jnp.dtype = jnp.float32
    positions: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, H, W, C) -> the same shape in `dtype`.

        Args:
          x: the values.
          train: normalize by the batch's statistics, and update the running statistics where
            `batch_stats` is mutable; otherwise normalize by the running statistics.

        Raises:
          ValueError: the running statistics cannot be updated by a single value each.
        """
        channels = x.shape[-1]
        shape = (*self.positions, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - len(shape)))
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // math.prod(shape)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                if count < 2:
                    raise ValueError(
                        f"batch statistics need more than one value a channel, got shape {x.shape}"
                    )
                self._update(running_mean, mean)
                self._update(running_var, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
        x = _standardize(x, mean, var, self.epsilon)
        if self.affine:
            x = x * self.param("scale", self.scale_init, (channels,), jnp.float32)
            x = x + self.param("bias", initializers.zeros, (channels,), jnp.float32)
        return x.astype(self.dtype)

    def _update(self, running, batch_value):
        new = jax.lax.stop_gradient(batch_value)
        running.value = (1.0 - self.momentum) * running.value + self.momentum * new


class LatentNorm(BatchNorm):
    """The normalization of the latents between tokenizer and backbone (REPA-E, section 3.2).

    It has no affine part, so that the backbone cannot shrink its targets. Its running mean and
    variance are the latent statistics, with which `normalize` computes the same function. They are
    (c,), or (h, w, c) for a tokenizer with statistics by position (RAE).
    """

    epsilon: float = LATENT_EPSILON
    affine: bool = False


def normalize(latents: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """(z - mean) / sqrt(var + 1e-4) per channel of (..., C): the latents that a backbone learns.

    Mean and variance are (C,), or (H, W, C) for latents (..., H, W, C); so in the two functions
    below.
    """
    return _standardize(latents, mean, var, LATENT_EPSILON)


def denormalize(latents: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """z * sqrt(var + 1e-4) + mean per channel of (..., C): the inverse of `normalize`."""
    return latents * jnp.sqrt(var + LATENT_EPSILON) + mean


def denormalize_samples(latents: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """z * sqrt(var) + mean per channel of (..., C): from a sampler's result to `decode`.

    Unlike `denormalize`, it leaves the epsilon out, as the original's samplers do, and as all code
    does that reads a tokenizer's statistics as a mean and a standard deviation.
    """
    return latents * jnp.sqrt(var) + mean


def _standardize(x, mean, var, epsilon):
    return (x - mean) * jax.lax.rsqrt(var + epsilon)
