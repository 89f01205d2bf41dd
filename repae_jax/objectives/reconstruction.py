"""Distances between images and reconstructions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def l1(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean absolute error over all axes of (B, H, W, C), scalar."""
    return jnp.mean(jnp.abs(images - reconstructions))


def l2(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean squared error over all axes of (B, H, W, C), scalar."""
    return jnp.mean(jnp.square(images - reconstructions))


RECONSTRUCTION: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"l1": l1, "l2": l2}
