"""BatchNorm with PyTorch's running statistics, and the LatentNorm made of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers


class BatchNorm(nn.Module):
    """Normalises (B, H, W, C) per channel; running statistics live in `batch_stats`.

    Flax's own BatchNorm keeps the biased variance; PyTorch, and so every published checkpoint,
    the unbiased one: running = (1 - momentum) * running + momentum * var * n / (n - 1).
    Statistics are float32, and taken over the global batch when the batch is sharded.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    affine: bool = True
    scale_init: initializers.Initializer = initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Batch statistics if `train` (and, where `batch_stats` is mutable, updates them)."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // channels
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                if count < 2:
                    raise ValueError(
                        f"batch statistics need more than one value a channel, got shape {x.shape}"
                    )
                self._update(running_mean, mean)
                self._update(running_var, var * (count / (count - 1)))
        else:
            mean, var = running_mean.value, running_var.value
        x = (x - mean) * jax.lax.rsqrt(var + self.epsilon)
        if self.affine:
            x = x * self.param("scale", self.scale_init, (channels,), jnp.float32)
            x = x + self.param("bias", initializers.zeros, (channels,), jnp.float32)
        return x.astype(self.dtype)

    def _update(self, running, batch_value):
        new = jax.lax.stop_gradient(batch_value)
        running.value = (1.0 - self.momentum) * running.value + self.momentum * new


class LatentNorm(BatchNorm):
    """The normalisation of the latents between VAE and backbone (REPA-E, section 3.2).

    No affine part, so that the backbone cannot shrink its targets; eps 1e-4. Its running mean and
    variance are the latent statistics: sampling inverts them with `denormalize`.
    """

    epsilon: float = 1e-4
    affine: bool = False


def denormalize(latents: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """z * sqrt(var) + mean, per channel of (..., C); without epsilon, as published samples are."""
    return latents * jnp.sqrt(var) + mean
