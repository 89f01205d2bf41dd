"""What steers a backbone: the contract of a condition, and what every kind of it shares."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

Arrays = Mapping[str, jax.Array]


class Condition(NamedTuple):
    """A condition as a backbone uses it; what a conditioner does not give is None."""

    vector: jax.Array | None = None  # (B, D), added to the time embedding
    tokens: jax.Array | None = None  # (B, L, D)
    mask: jax.Array | None = None  # (B, L) bool, True for tokens that count


class Conditioner(Protocol):
    """A kind of condition with its sizes; immutable and hashable, without weights.

    Attributes:
      name: of the module within its backbone, the head of its parameters' names.
      gives: the fields of `Condition` that the module gives.
    """

    name: str
    gives: tuple[str, ...]

    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one image's condition: {"label": ()}, or {"tokens", "mask"}."""

    def null(self) -> Arrays | None:
        """The arrays of one image without a condition; None if the model knows no such."""

    def from_labels(self, labels: jax.Array) -> Arrays:
        """The condition of images of the classes `labels` (B,) int32."""

    def module(self, hidden_size: int, dtype: jnp.dtype) -> nn.Module:
        """The module that turns a condition's arrays into a `Condition` of that width D."""


def replace_where(mask: jax.Array, condition: Arrays, null: Arrays) -> Arrays:
    """A condition with `null` in the place of each image for which `mask` (B,) is True."""

    def one(values, nothing):
        rows = mask.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(rows, nothing, values)

    return jax.tree.map(one, condition, null)


def full_like(condition: Arrays, null: Arrays) -> Arrays:
    """`null` for every image of a condition."""
    return jax.tree.map(
        lambda values, nothing: jnp.broadcast_to(jnp.asarray(nothing, values.dtype), values.shape),
        condition,
        null,
    )
