"""The diffusion loss: velocity regression on an interpolant (arXiv 2401.08740, equation 8)."""

import jax
import jax.numpy as jnp


def denoising_loss(velocity: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of the velocity (B, h, w, c) over all axes; float32 scalar."""
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - target))
