"""Between uint8 pixels and the models' float images."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pixels -> float32 in [-1, 1], x / 127.5 - 1, of any shape.

    Raises TypeError unless the pixels are uint8.
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise TypeError(f"pixels must be uint8, got {images.dtype}")
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """Float images, nominally in [-1, 1], -> uint8 pixels, of any shape.

    clamp(255 (x + 1) / 2, 0, 255), then *truncated*, as the original writes its samples (its
    generate.py): rounding would brighten them by half a level on average. So this is no exact
    inverse of `to_float`: a level that float32 leaves just below its integer loses one.

    Raises TypeError unless the images are floating point.
    """
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating point, got {images.dtype}")
    scaled = 255.0 * ((images.astype(jnp.float32) + 1.0) / 2.0)
    return jnp.clip(scaled, 0.0, 255.0).astype(jnp.uint8)
