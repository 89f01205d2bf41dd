"""The diffusion loss: regression of the velocity on an interpolant, and of its direction."""

import jax
import jax.numpy as jnp

from repae_jax.objectives.alignment import unit


def denoising_loss(velocity: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of the velocity (B, h, w, c) over all axes; float32 scalar.

    Source: arXiv 2401.08740, equation 8.
    """
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - target))


def cosine_loss(velocity: jax.Array, target: jax.Array) -> jax.Array:
    """1 - cos of the velocity and its target (B, h, w, c) over channels, in [0, 2]; float32 scalar.

    The mean over images and positions (LightningDiT, arXiv 2501.01423, section 4). Norms below
    1e-8 count as 1e-8, as PyTorch's do; so the gradient at a velocity of zero, which a new backbone
    predicts, is the target's direction times 1e8.
    """
    return jnp.mean(1.0 - jnp.sum(unit(velocity, 1e-8) * unit(target, 1e-8), axis=-1))
