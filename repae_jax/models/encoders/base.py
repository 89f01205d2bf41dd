"""The contract of an encoder: a frozen network (a teacher) that the backbone is aligned with."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from repae_jax.errors import UserError


class ViTTokens(NamedTuple):
    """The features of a batch of images, float32."""

    patch_tokens: jax.Array  # (B, N, D), the grid in row-major order
    class_token: jax.Array | None  # (B, D); None if the encoder has no class token


class Encoder(Protocol):
    """A Flax module from images to tokens: a teacher.

    `grid` and `prepare` use only the module's fields, so they need no variables; `nn.nowrap` marks
    them.

    Attributes:
      dim: width D of a token.
      class_token: whether it gives a class token.
    """

    dim: int
    class_token: bool

    def grid(self, resolution: int) -> int:
        """Tokens along a side for images of `resolution` pixels along a side.

        Raises:
          UserError: the images do not divide into patches.
        """
        ...

    def prepare(self, images: jax.Array) -> jax.Array:
        """uint8 RGB images (B, H, W, 3) -> the module's input."""
        ...

    def __call__(self, x: jax.Array) -> ViTTokens:
        """Prepared images -> tokens."""
        ...


def patch_tokens(
    encoder: Encoder, variables: Mapping, images: jax.Array, *, class_token: bool = False
) -> jax.Array:
    """The tokens (B, N, D) of uint8 images (B, H, W, 3), behind a stop-gradient.

    With `class_token` they are (B, N + 1, D), and the last one is the class token.

    Raises:
      UserError: the encoder has no class token, but `class_token` is set.
    """
    tokens = encoder.apply(variables, encoder.prepare(images))
    if not class_token:
        return stop_gradient(tokens.patch_tokens)
    if tokens.class_token is None:
        raise UserError("the teacher has no class token, which the backbone would denoise")
    both = [tokens.patch_tokens, tokens.class_token[:, None]]
    return stop_gradient(jnp.concatenate(both, axis=1))


def initial_variables(encoder: Encoder, key: jax.Array, resolution: int) -> dict:
    """Initial variables for images of `resolution` pixels; under `jax.eval_shape` their shapes."""
    images = jnp.zeros((1, resolution, resolution, 3), jnp.uint8)
    return encoder.init(key, encoder.prepare(images))
