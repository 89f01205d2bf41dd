"""The kinds of condition that `config.condition.family` chooses from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repae_jax.models.conditioning.base import Conditioner
from repae_jax.models.conditioning.class_label import ClassLabel


class Family(NamedTuple):
    """A row of `CONDITIONERS`.

    Attributes:
      build: (num_classes, null, **options) -> the conditioner; `null` asks for a null condition.
      options: its keys of `config.condition` with their defaults.
    """

    build: Callable[..., Conditioner]
    options: Mapping[str, Any] = {}


CONDITIONERS = {"class": Family(ClassLabel)}
