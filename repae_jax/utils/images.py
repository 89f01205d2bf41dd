"""Conversion between uint8 pixels and the models' float images."""

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.utils.arrays import as_array
from repae_jax.utils.finite import NotFinite

_OVERSHOOT = 0.5
_TAKEN = (
    "give uint8 pixels from 0 to 255, or floats from -1 to 1 (of pixels x that is x / 127.5 - 1)"
)
_FLOATS = "give floats, nominally from -1 to 1"


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pixels of any shape -> float32 in [-1, 1]: x / 127.5 - 1.

    Raises:
      TypeError: the pixels are not uint8.
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise TypeError(f"pixels must be uint8, got {images.dtype}")
    return images.astype(jnp.float32) / 127.5 - 1.0


def as_float(images: jax.Array) -> jax.Array:
    """A user's images of any shape, uint8 or float in [-1, 1] -> floats in [-1, 1].

    Floats may overshoot by 0.5, as the output of a decoder does. Their values are checked unless
    they are traced.

    Raises:
      TypeError: other integers, bools or complex numbers, whose range is unknown, or a value that
        is no array.
      UserError: floats beyond the range, or NaN.
    """
    dtype = getattr(images, "dtype", None)  # before JAX turns 64 bits into 32
    images = as_array(images, "images", _TAKEN)
    if images.dtype == jnp.uint8:
        return to_float(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are {dtype or images.dtype}: {_TAKEN}")
    if images.size and not isinstance(images, jax.core.Tracer):
        low, high = float(images.min()), float(images.max())
        if not (low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT):  # NaN fails both comparisons
            raise UserError(f"images are from {low:g} to {high:g}: {_TAKEN}")
    return images


def to_uint8(images: jax.Array, *, rounded: bool = False) -> jax.Array:
    """Float images of any shape, nominally in [-1, 1] -> uint8 pixels.

    clamp(255 (x + 1) / 2, 0, 255), then *truncated*, as the original's generate.py writes its
    samples; rounding would brighten them by half a level on average. So `to_uint8(to_float(x))`
    loses one level where float32 rounds to just below an integer. With `rounded`, as JiT writes its
    samples, it loses none.

    The values are checked outside of compiled functions. A compiled function cannot raise, and
    turns NaN into black (see `utils.finite.finite_rows`).

    Raises:
      TypeError: the images are not floating point.
      NotFinite: the images hold NaN or infinite values.
    """
    images = as_array(images, "images", _FLOATS)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating point, got {images.dtype}")
    if not isinstance(images, jax.core.Tracer) and not jnp.isfinite(images).all():
        raise NotFinite(
            "images hold NaN or infinite values, which are no pixels: look for their origin in the "
            "latents, the weights, or a type too narrow for them"
        )
    scaled = 255.0 * ((images.astype(jnp.float32) + 1.0) / 2.0)
    scaled = jnp.round(scaled) if rounded else scaled
    return jnp.clip(scaled, 0.0, 255.0).astype(jnp.uint8)
