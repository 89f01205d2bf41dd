"""The adversarial terms of the VAE and its discriminator (hinge loss), and LeCam regularization."""

import jax
import jax.numpy as jnp


def generator_loss(logits_fake: jax.Array) -> jax.Array:
    """The VAE's adversarial loss: -mean D(reconstruction), scalar; logits of any shape."""
    return -jnp.mean(logits_fake)


def hinge_loss(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
    """The discriminator's loss: 0.5 * (mean relu(1 - D(x)) + mean relu(1 + D(reconstruction)))."""
    real = jnp.mean(jax.nn.relu(1.0 - logits_real))
    fake = jnp.mean(jax.nn.relu(1.0 + logits_fake))
    return 0.5 * (real + fake)


def lecam_loss(
    mean_real: jax.Array, mean_fake: jax.Array, ema_real: jax.Array, ema_fake: jax.Array
) -> jax.Array:
    """LeCam regularization (arXiv 2104.03310): keeps mean logits near the other side's average.

    relu(mean_real - ema_fake)^2 + relu(ema_real - mean_fake)^2, all scalars.

    Args:
      mean_real: mean logit of this batch's images.
      mean_fake: mean logit of this batch's reconstructions.
      ema_real: moving average of `mean_real` before this step.
      ema_fake: moving average of `mean_fake` before this step.
    """
    real = jnp.square(jax.nn.relu(mean_real - ema_fake))
    return real + jnp.square(jax.nn.relu(ema_real - mean_fake))
