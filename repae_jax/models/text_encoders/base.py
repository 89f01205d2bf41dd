"""The contract of a text encoder: a frozen network whose states condition the backbone."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

_BUCKETS, _LEAST_BUCKET = 4, 32  # lengths that captions are encoded at, and the shortest


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


def encode_captions(
    encoder: TextEncoder, variables: Mapping[str, Any], ids: jax.Array, length: jax.Array
) -> dict[str, jax.Array]:
    """The condition {"tokens": (B, L, D) float32, "mask": (B, L) bool} of captions.

    No gradient reaches the encoder. An encoder that crops runs on the positions of the longest
    caption, rounded up to a quarter of L and at least to 32.

    Args:
      encoder: the text encoder.
      variables: its variables.
      ids: (B, L) int32, padded on the right.
      length: (B,) int32, the tokens of each caption without padding.
    """
    whole = ids.shape[1]
    mask = caption_mask(ids, length)

    def states(size):
        found = encoder.apply(variables, ids[:, :size], mask[:, :size])
        return jnp.pad(found, ((0, 0), (0, whole - size), (0, 0)))

    step = max(_LEAST_BUCKET, -(-whole // _BUCKETS))
    sizes = [*range(step, whole, step), whole]
    if not encoder.crops or len(sizes) == 1:
        tokens = states(whole)
    else:
        branches = [lambda size=size: states(size) for size in sizes]
        tokens = jax.lax.switch((jnp.maximum(length.max(), 1) - 1) // step, branches)
    return {"tokens": stop_gradient(tokens), "mask": mask}


def caption_mask(ids: jax.Array, length: jax.Array) -> jax.Array:
    """(B, L) bool: True for the tokens of captions `ids` (B, L), False for their padding."""
    return jnp.arange(ids.shape[1]) < length[:, None]


def null_states(encoder: TextEncoder, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The condition of the empty caption, without a batch: tokens (L, D) and mask (L,)."""
    ids = [*encoder.null_ids, *[encoder.pad_id] * (encoder.length - len(encoder.null_ids))]
    batch = jnp.array([ids], jnp.int32), jnp.array([len(encoder.null_ids)], jnp.int32)
    return jax.tree.map(lambda leaf: leaf[0], encode_captions(encoder, variables, *batch))


def initial_variables(encoder: TextEncoder, key: jax.Array) -> dict:
    """Initial variables; under `jax.eval_shape` their shapes."""
    return encoder.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
