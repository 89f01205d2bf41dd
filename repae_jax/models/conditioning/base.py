"""The contract of a condition of a backbone, and functions for conditions of every kind."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

Arrays = Mapping[str, jax.Array]


class Condition(NamedTuple):
    """An embedded condition, as a backbone uses it; None for fields that a conditioner lacks."""

    vector: jax.Array | None = None  # (B, D), added to the time embedding
    tokens: jax.Array | None = None  # (B, L, D), finite also where the mask is False
    mask: jax.Array | None = None  # (B, L) bool, False for padding


class Conditioner(Protocol):
    """A kind of condition with its sizes; immutable and hashable, without weights.

    Attributes:
      name: the name that the backbone gives the module, and so its parameters.
      gives: the fields of `Condition` that the module sets. The `check` of a backbone raises
        UserError for a conditioner without the field that it reads.
    """

    name: str
    gives: tuple[str, ...]

    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes and types of one image's condition: {"label": ()}, or {"tokens", "mask"}."""

    def null(self) -> Arrays | None:
        """The null condition of one image, where the sizes determine it.

        None for a model without a null condition. None also for a conditioner whose null condition
        is data, as the states of the empty caption are: then the caller brings the arrays of
        `spec` wherever it would use this result.
        """

    def from_labels(self, labels: jax.Array) -> Arrays:
        """The condition of images of the classes `labels` (B,) int32.

        Raises:
          UserError: labels do not determine a condition of this kind.
        """

    def module(self, hidden_size: int, dtype: jnp.dtype) -> nn.Module:
        """The module that embeds a condition's arrays as a `Condition` of width D."""


def replace_where(mask: jax.Array, condition: Arrays, null: Arrays) -> Arrays:
    """Replace the condition by `null` for every image where `mask` (B,) is True."""

    def one(values, nothing):
        rows = mask.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(rows, nothing, values)

    return jax.tree.map(one, condition, null)


def full_like(condition: Arrays, null: Arrays) -> Arrays:
    """`null` for every image, in the shapes and types of `condition`."""
    return jax.tree.map(
        lambda values, nothing: jnp.broadcast_to(jnp.asarray(nothing, values.dtype), values.shape),
        condition,
        null,
    )
