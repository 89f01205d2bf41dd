"""Distributions of the latents of an image, which a tokenizer's `encode` returns."""

import math
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError


class LatentDistribution(Protocol):
    """The posterior q(z | x), float32; the values of z are independent.

    Attributes:
      mean: (B, h, w, c).
      std: standard deviation, (B, h, w, c).
    """

    mean: jax.Array
    std: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """A sample z (B, h, w, c); `noise` is standard normal (B, h, w, c), or a random key."""
        ...

    def kl(self) -> jax.Array:
        """KL(q || N(0, 1)) in nats, summed over latent dimensions: (B,)."""
        ...

    def entropy(self) -> jax.Array:
        """The differential entropy in nats, summed over latent dimensions: (B,).

        Raises:
          UserError: the distribution has no density.
        """
        ...


@flax.struct.dataclass
class Gaussian:
    """A diagonal Gaussian posterior q(z | x)."""

    mean: jax.Array  # (B, h, w, c)
    logvar: jax.Array  # (B, h, w, c)

    @classmethod
    def from_moments(cls, moments: jax.Array) -> "Gaussian":
        """Moments (B, h, w, 2c), mean first -> float32 Gaussian, log-variance in [-30, 20]."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, -30.0, 20.0))

    @classmethod
    def from_std(cls, mean: jax.Array, std: jax.Array) -> "Gaussian":
        """A Gaussian from its mean and standard deviation, (B, h, w, c) each, as a cache has them.

        Where the standard deviation is 0 (the cached latents of a `Point`), the sample is the mean,
        the log-variance and the KL divergence are infinite, and the gradient by the standard
        deviation is 0.
        """
        wide = std > 0
        logvar = 2.0 * jnp.log(jnp.where(wide, std, 1.0))
        return cls(mean, jnp.where(wide, logvar, -jnp.inf))

    @property
    def std(self) -> jax.Array:
        """Standard deviation, (B, h, w, c)."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, noise: jax.Array) -> jax.Array:
        """mean + std * noise; `noise` is standard normal (B, h, w, c), or a random key."""
        if not jnp.issubdtype(noise.dtype, jnp.floating):
            noise = jax.random.normal(noise, self.mean.shape)
        return self.mean + self.std * noise

    def kl(self) -> jax.Array:
        """KL(q || N(0, 1)) in nats, summed over latent dimensions: (B,)."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.sum(axis=(1, 2, 3))

    def entropy(self) -> jax.Array:
        """The differential entropy in nats, summed over latent dimensions: (B,)."""
        return 0.5 * (math.log(2.0 * math.pi * math.e) + self.logvar).sum(axis=(1, 2, 3))


@flax.struct.dataclass
class Point:
    """A point posterior: one latent for each image, from a deterministic tokenizer.

    Its KL divergence from N(0, 1) is infinite and constant, so it gives nothing to train; `kl`
    returns 0.
    """

    mean: jax.Array  # (B, h, w, c)

    @property
    def std(self) -> jax.Array:
        """Zeros (B, h, w, c)."""
        return jnp.zeros_like(self.mean)

    def sample(self, noise: jax.Array) -> jax.Array:
        """The mean; `noise` is ignored."""
        del noise
        return self.mean

    def kl(self) -> jax.Array:
        """Zeros (B,)."""
        return jnp.zeros(len(self.mean))

    def entropy(self) -> jax.Array:
        """Raises UserError: a point has no density."""
        raise UserError(
            "config.objective.prior_weight weighs the entropy of the tokenizer's posterior, but "
            "this tokenizer is deterministic: set --config.objective.prior_weight=0.0, or choose a "
            "VAE"
        )
