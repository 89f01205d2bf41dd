"""Arrays of a user."""

from typing import Any

import jax
import jax.numpy as jnp


def as_array(value: Any, what: str, taken: str) -> jax.Array:
    """What a user gives as an array.

    Args:
      value: an array of any library, or nested lists.
      what: what to call it in an error, such as "images".
      taken: what the error advises.

    Raises:
      TypeError: it is none.
    """
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:  # the latter of None, and of lists of several lengths
        raise TypeError(f"{what} are a {type(value).__name__}, no array: {taken}") from error
