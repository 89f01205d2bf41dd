"""The contract of a condition of a backbone, and functions for conditions of every kind."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.text_encoders.base import TextEncoder

Arrays = Mapping[str, jax.Array]


class Condition(NamedTuple):
    """An embedded condition, as a backbone uses it; None for fields that a conditioner lacks."""

    vector: jax.Array | None = None  # (B, D), added to the time embedding
    tokens: jax.Array | None = None  # (B, L, D), finite also where the mask is False
    mask: jax.Array | None = None  # (B, L) bool, False for padding


class Given(NamedTuple):
    """What a configuration says about the condition outside of its section; a row takes it first.

    Attributes:
      num_classes: classes of the data.
      null: whether training drops conditions, so that there is a null condition.
      text_encoder: the text encoder; None for a run without captions.
    """

    num_classes: int
    null: bool
    text_encoder: TextEncoder | None = None


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
        is data, as the states of the empty caption are: then a run keeps the arrays of `spec` (see
        `null_condition`).
        """

    def from_labels(self, labels: jax.Array) -> Arrays:
        """The condition of images of the classes `labels` (B,) int32.

        Raises:
          UserError: labels do not determine a condition of this kind.
        """

    def module(self, hidden_size: int, dtype: jnp.dtype) -> nn.Module:
        """The module that embeds a condition's arrays as a `Condition` of width D."""


def null_condition(conditioner: Conditioner, kept: Mapping[str, Any]) -> Arrays | None:
    """The null condition of one image: the conditioner's own, or what a run keeps.

    Args:
      conditioner: the kind of condition.
      kept: arrays of a run; it holds "null_condition" where that is data.

    Returns:
      None for a model without a null condition.
    """
    own = conditioner.null()
    return kept.get("null_condition") if own is None else own


def replace_where(mask: jax.Array, condition: Arrays, null: Arrays) -> Arrays:
    """Replace the condition by `null` for every image where `mask` (B,) is True."""

    def one(values, nothing):
        rows = mask.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(rows, nothing, values)

    return jax.tree.map(one, condition, null)


def repeated(null: Arrays, count: int) -> Arrays:
    """`null` for each of `count` images."""
    arrays = jax.tree.map(jnp.asarray, null)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), arrays)


def full_like(condition: Arrays, null: Arrays) -> Arrays:
    """`null` for every image, in the shapes and types of `condition`."""
    return jax.tree.map(
        lambda values, nothing: jnp.broadcast_to(jnp.asarray(nothing, values.dtype), values.shape),
        condition,
        null,
    )
