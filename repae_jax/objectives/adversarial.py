"""The hinge GAN terms of the VAE and its discriminator, and LeCam regularisation."""

import jax
import jax.numpy as jnp


def generator_loss(logits_fake: jax.Array) -> jax.Array:
    """-mean D(reconstruction): what the VAE lowers."""
    return -jnp.mean(logits_fake)


def hinge_loss(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
    """0.5 * (mean relu(1 - D(x)) + mean relu(1 + D(reconstruction))): the discriminator's loss."""
    real = jnp.mean(jax.nn.relu(1.0 - logits_real))
    fake = jnp.mean(jax.nn.relu(1.0 + logits_fake))
    return 0.5 * (real + fake)


def lecam_loss(
    mean_real: jax.Array, mean_fake: jax.Array, ema_real: jax.Array, ema_fake: jax.Array
) -> jax.Array:
    """LeCam regularisation (arXiv 2104.03310): keeps mean logits near the other side's average.

    relu(mean_real - ema_fake)^2 + relu(ema_real - mean_fake)^2, all scalars; the averages are
    those from before this step.
    """
    real = jnp.square(jax.nn.relu(mean_real - ema_fake))
    return real + jnp.square(jax.nn.relu(ema_real - mean_fake))
