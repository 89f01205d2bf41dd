"""Tests for finite values: numbers other than NaN and the infinities."""

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError


class NotFinite(UserError):
    """NaN or infinite values, which a cast to uint8 would turn into black pixels."""


def finite_in_float32(array: np.ndarray) -> bool:
    """Whether all values of a floating-point array stay finite when cast to float32."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(array).astype(np.float32, copy=False)).all())


def finite_rows(values: jax.Array) -> jax.Array:
    """Which rows of `values` (B, ...) hold only finite numbers, (B,) bool."""
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))
