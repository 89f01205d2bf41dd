"""Class labels, embedded by a table whose last row is the null class (DiT, arXiv 2212.09748)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.models.conditioning.base import Arrays, Condition, Given
from repae_jax.models.family import Family

_INIT = initializers.normal(0.02)


class LabelEmbedding(nn.Embed):
    """The embedding table of the classes; the last row is the null class, if there is one."""

    def __call__(self, condition: Arrays) -> Condition:
        """{"label": (B,) int32} -> a vector (B, D)."""
        return Condition(vector=super().__call__(condition["label"]))


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """Conditions {"label": (B,) int32} with classes from 0 to num_classes - 1.

    With `null_class`, the label num_classes is the null class.
    """

    num_classes: int
    null_class: bool = True

    name = "label_embed"
    gives = ("vector",)

    @property
    def null_label(self) -> int | None:
        """The label of the null class; None for a model without one."""
        return self.num_classes if self.null_class else None

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `Conditioner`."""
        return {"label": jax.ShapeDtypeStruct((), jnp.int32)}

    def null(self) -> dict[str, int] | None:
        """See `Conditioner`."""
        return {"label": self.num_classes} if self.null_class else None

    def from_labels(self, labels: jax.Array) -> Arrays:
        """See `Conditioner`."""
        return {"label": labels}

    def module(self, hidden_size: int, dtype: jnp.dtype) -> LabelEmbedding:
        """See `Conditioner`."""
        rows = self.num_classes + int(self.null_class)
        return LabelEmbedding(rows, hidden_size, dtype=dtype, embedding_init=_INIT)


def _build(given: Given) -> ClassLabel:
    return ClassLabel(given.num_classes, given.null)


FAMILY = Family(_build)
