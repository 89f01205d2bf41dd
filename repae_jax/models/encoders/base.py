"""What every encoder is: a frozen network whose patch tokens the backbone is aligned with."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


class ViTTokens(NamedTuple):
    """The features of a batch of images, float32."""

    patch_tokens: jax.Array  # (B, N, D), rows of the grid first
    class_token: jax.Array | None  # (B, D); None where the encoder has none


class Encoder(Protocol):
    """A Flax module that gives tokens of images: a teacher.

    `grid` and `prepare` use its fields only, so they need no variables; `nn.nowrap` marks them.

    Attributes:
      dim: width D of a token.
    """

    dim: int

    def grid(self, resolution: int) -> int:
        """Tokens along a side, of images of `resolution` pixels.

        Raises:
          UserError: such images do not divide into its patches.
        """
        ...

    def prepare(self, images: jax.Array) -> jax.Array:
        """uint8 RGB images (B, H, W, 3) -> what the module is called with."""
        ...

    def __call__(self, x: jax.Array) -> ViTTokens:
        """Prepared images -> tokens."""
        ...


def patch_tokens(encoder: Encoder, variables: Mapping, images: jax.Array) -> jax.Array:
    """The tokens (B, N, D) of uint8 images (B, H, W, 3), which no gradient passes."""
    return stop_gradient(encoder.apply(variables, encoder.prepare(images)).patch_tokens)


def initial_variables(encoder: Encoder, key: jax.Array, resolution: int) -> dict:
    """Fresh variables for images of `resolution` pixels; under `jax.eval_shape`, their shapes."""
    images = jnp.zeros((1, resolution, resolution, 3), jnp.uint8)
    return encoder.init(key, encoder.prepare(images))
