"""The contract of a discriminator, and their table; `config.discriminator.family` names one."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from repae_jax.models import dino_discriminator, discriminator


class Discriminator(Protocol):
    """A Flax module from images to logits.

    A run trains the collection "params". The collection "batch_stats" is updated by each call in
    train mode. No step changes other collections, such as "constants" for a frozen network; a run
    keeps them in `state.frozen["discriminator"]`.

    Attributes:
      dtype: the type of its matrix products and convolutions.
      generator_in_train_mode: whether the tokenizer's adversarial term applies it in train mode.
      fakes_first: whether its own loss applies it to the reconstructions before the images, each
        call with the "batch_stats" that the call before left.
      waits: whether neither its "batch_stats" nor its optimizer's state changes before
        `objective.discriminator_start`. Otherwise its loss until then is 0, and both change.
    """

    dtype: Any
    generator_in_train_mode: bool
    fakes_first: bool
    waits: bool

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> logits (B, ...), float32."""
        ...


DISCRIMINATORS = {
    "patchgan": discriminator.FAMILY,
    "dino": dino_discriminator.FAMILY,
}


def split_variables(variables: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """A discriminator's "params", its "batch_stats", and its collections that no step changes."""
    rest = dict(variables)
    return rest.pop("params"), rest.pop("batch_stats", {}), rest
