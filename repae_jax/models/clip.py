"""CLIP (arXiv 2103.00020): an image tower and a text tower with embeddings of one space."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.models.encoders.preprocessing import CLIP_MEAN, CLIP_STD
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.layers import Dense
from repae_jax.models.text_encoders.clip_text import CLIPText


class CLIP(nn.Module):
    """Both towers with their projections.

    Attributes:
      image: the image tower, whose final norm is applied to the class token.
      text: the text tower, with its projection.
      projection: width P of an embedding.
    """

    image: ViT
    text: CLIPText
    projection: int

    @nn.compact
    def image_embedding(self, images: jax.Array) -> jax.Array:
        """uint8 RGB images (B, S, S, 3) -> embeddings (B, P) float32, not normalized.

        S is `side`; `evaluation.resized_images.resize_shorter` makes it of any picture.
        """
        x = (images.astype(jnp.float32) / 255.0 - CLIP_MEAN) / CLIP_STD
        project = Dense(
            self.projection,
            biased=False,
            kernel_init=initializers.normal(0.02),
            name="image_projection",
        )
        return project(self.image(x).class_token)

    def cosine(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """The cosine (B,) between the embeddings of images and of captions.

        Args:
          images: uint8 (B, S, S, 3).
          ids: (B, L) int32, see `CLIPText.text_embedding`.
        """
        first, second = self.image_embedding(images), self.text.text_embedding(ids)
        return (_unit(first) * _unit(second)).sum(-1)

    @property
    def side(self) -> int:
        """Pixels along a side of the images."""
        return self.image.native_grid * self.image.patch_size


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
