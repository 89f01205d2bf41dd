"""The identity tokenizer, for backbones that are trained on pixels (JiT, arXiv 2511.13720)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.family import Family
from repae_jax.models.inputs import check_images, check_latents
from repae_jax.models.tokenizers.distributions import Point


class Pixels(nn.Module):
    """Takes images (B, H, W, 3) in [-1, 1] as their own latents, each a `Point`.

    It has no parameters, so nothing trains it, and LatentNorm leaves its latents as they are.
    `dtype` and `remat` change nothing.
    """

    dtype: Any = jnp.float32
    remat: str = "none"

    factor, latent_channels, image_channels = 1, 3, 3
    identity = True
    deterministic = True

    def encode(self, images: jax.Array) -> Point:
        """Images (B, H, W, 3) -> points (B, H, W, 3).

        Raises:
          UserError: the images have another shape.
        """
        check_images(images, self.image_channels, self.factor)
        return Point(images.astype(jnp.float32))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents (B, H, W, 3) -> the same, float32.

        Raises:
          UserError: the latents have another shape.
        """
        check_latents(latents, self.latent_channels)
        return latents.astype(jnp.float32)

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[Point, jax.Array]:
        """The point, and the images again; `noise` is ignored."""
        point = self.encode(images)
        return point, self.decode(point.sample(noise))


FAMILY = Family(Pixels, describe=lambda pixels: "the images themselves, in [-1, 1]")
