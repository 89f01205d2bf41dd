"""The contract of a text encoder: a frozen network whose states condition the backbone."""

from typing import Protocol

import jax
import jax.numpy as jnp


class TextEncoder(Protocol):
    """A Flax module from the tokens of captions to one state per token.

    Captions are padded on the right. The states of a caption's tokens depend on no padding, and
    every state is finite, also those of a caption without any token.

    Attributes:
      vocabulary: the token ids, from 0 on.
      dim: width D of a state.
      length: the most tokens of a caption, L.
      pad_id: the id of a padded position.
      null_ids: the ids of the empty caption; () if it has no token.
      crops: whether a batch may be cropped to its longest caption. False for an encoder whose
        states at padded positions are part of the condition: it takes all `length` positions.
    """

    vocabulary: int
    dim: int
    length: int
    pad_id: int
    null_ids: tuple[int, ...]
    crops: bool

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens of captions -> states (B, L, D) float32, zero at padded positions if `crops`.

        Args:
          ids: (B, L) int32, in [0, vocabulary) where `mask` is True.
          mask: (B, L) bool, True for a token, False for padding.
        """
        ...


def initial_variables(encoder: TextEncoder, key: jax.Array) -> dict:
    """Initial variables; under `jax.eval_shape` their shapes."""
    return encoder.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
