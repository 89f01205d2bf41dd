"""The map from latents to the width of a frozen vision encoder (VA-VAE, arXiv 2501.01423)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.layers import TORCH_KERNEL, Dense


class FoundationProjection(nn.Module):
    """A 1 x 1 convolution without bias.

    Attributes:
      dim: width D of the encoder's tokens.
    """

    dim: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """Latents (B, h, w, c) -> tokens (B, h * w, D) in row-major order, float32."""
        batch, height, width, channels = latents.shape
        tokens = latents.astype(jnp.float32).reshape(batch, height * width, channels)
        return Dense(self.dim, biased=False, kernel_init=TORCH_KERNEL, name="projection")(tokens)
