"""Conversion of a user's values to arrays."""

from typing import Any

import jax
import jax.numpy as jnp


def as_array(value: Any, what: str, taken: str) -> jax.Array:
    """Convert a user's value to a JAX array.

    Args:
      value: an array of any library, or nested lists.
      what: its name in an error, such as "images".
      taken: the advice in an error: which values are accepted.

    Raises:
      TypeError: `value` cannot be converted.
    """
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:  # ValueError: None, or lists of unequal lengths
        raise TypeError(f"{what} are a {type(value).__name__}, no array: {taken}") from error
