"""A convolutional level, the building block of small classifiers and of a ViT's stem."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ConvLevel(nn.Module):
    """A convolution of stride 2, then two residual convolutions, each after GroupNorm and SiLU.

    Attributes:
      width: features, a multiple of 8.
      dtype: the type of the convolutions; the norms are float32.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / 2, W / 2, width)."""
        x = nn.Conv(self.width, (3, 3), strides=2, dtype=self.dtype, name="down")(x)
        for index in (1, 2):
            h = nn.silu(nn.GroupNorm(8, name=f"norm_{index}")(x))
            x = x + nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"conv_{index}")(h)
        return x
