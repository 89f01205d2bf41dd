"""Captions, as the states of a frozen text encoder, which a norm and a linear layer embed."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.conditioning.base import Arrays, Condition, Given
from repae_jax.models.family import Family
from repae_jax.models.layers import TORCH_KERNEL, Dense, OffsetRMSNorm, rms_norm


class Embedding(NamedTuple):
    """The layers of a `TextEmbedding`: `norm(dtype=..., name=...)`, and the weights' initializer.

    With `TORCH_KERNEL` the bias starts as PyTorch's does, otherwise at 0.
    """

    norm: Callable[..., nn.Module] | None
    kernel_init: initializers.Initializer


def _scaled_norm(dtype, name):
    return rms_norm(1e-6, dtype=dtype, name=name)


EMBEDDINGS = {
    "gemma": Embedding(OffsetRMSNorm, initializers.normal(0.02)),  # fuse-dit
    "rms_norm": Embedding(_scaled_norm, TORCH_KERNEL),  # diffusion-bench
    "linear": Embedding(None, TORCH_KERNEL),  # the MMDiT of REPA
}


class TextEmbedding(nn.Module):
    """The norm of an `Embedding`, if it has one, then a linear layer with a bias, on each token."""

    width: int
    embedding: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, condition: Arrays) -> Condition:
        """{"tokens": (B, L, C), "mask": (B, L)} -> tokens (B, L, D) and the mask."""
        norm, kernel_init = EMBEDDINGS[self.embedding]
        x = condition["tokens"].astype(jnp.float32)
        if norm is not None:
            x = norm(dtype=self.dtype, name="norm")(x)
        linear = Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name="linear")
        return Condition(tokens=linear(x), mask=condition["mask"])


@dataclasses.dataclass(frozen=True)
class Text:
    """Conditions {"tokens": (B, L, C) float32, "mask": (B, L) bool} of captions.

    The tokens are the last states of a frozen text encoder; the mask is False for padding, where
    the tokens are finite. The null condition, the states of the empty caption, is data that the
    caller brings.

    A backbone accepts batches of any length; `length` is that of `spec`.

    Attributes:
      length: L.
      width: C.
      embedding: the layers from C to the backbone's width, one of `EMBEDDINGS`.
    """

    length: int
    width: int
    embedding: str = "gemma"

    name = "text_embed"
    gives = ("tokens", "mask")

    def __post_init__(self):
        if self.embedding not in EMBEDDINGS:
            raise UserError(
                f"the embedding of text is {self.embedding!r}: use one of {', '.join(EMBEDDINGS)}"
            )

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `Conditioner`."""
        return {
            "tokens": jax.ShapeDtypeStruct((self.length, self.width), jnp.float32),
            "mask": jax.ShapeDtypeStruct((self.length,), jnp.bool_),
        }

    def null(self) -> None:
        """None: the caller brings the null condition, see `Conditioner`."""

    def from_labels(self, labels: jax.Array) -> Arrays:
        """See `Conditioner`.

        Raises:
          UserError: always, because captions make these conditions.
        """
        raise UserError(
            "a condition of text comes from captions, and these data or this command give class "
            "labels: use data with captions, or config.condition.family 'class'"
        )

    def module(self, hidden_size: int, dtype: jnp.dtype) -> TextEmbedding:
        """See `Conditioner`."""
        return TextEmbedding(hidden_size, self.embedding, dtype)


def _build(given: Given, embedding: str) -> Text:
    encoder = given.text_encoder
    if encoder is None:
        raise UserError(
            "config.condition.family is 'text', but config.text_encoder names no text encoder: set "
            "--config.text_encoder.arch, or --config.condition.family=class"
        )
    return Text(encoder.length, encoder.dim, embedding)


FAMILY = Family(_build, options={"embedding": Text.embedding})
