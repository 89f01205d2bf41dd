"""Values that are neither NaN nor infinite."""

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError


class NotFinite(UserError):
    """Values that are NaN or infinite: a cast to uint8 would make black pixels of them."""


def finite_in_float32(array: np.ndarray) -> bool:
    """Whether all numbers of a floating array, of any width, are finite once they are float32."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(array).astype(np.float32, copy=False)).all())


def finite_rows(values: jax.Array) -> jax.Array:
    """Which of the rows of `values` (B, ...) hold finite numbers only, (B,) bool."""
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))
