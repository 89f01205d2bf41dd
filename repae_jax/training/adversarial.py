"""The discriminator in a step: the tokenizer's adversarial term, and the discriminator's own loss.

Both apply it in train mode, so both update its BatchNorm's statistics; the term once it has begun.
"""

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from repae_jax.models.networks import Models
from repae_jax.objectives.adversarial import generator_loss, hinge_loss, lecam_loss
from repae_jax.objectives.objective import Objective
from repae_jax.training.forward import StepContext


def adversarial_term(models: Models, objective: Objective):
    """Build the tokenizer's adversarial term, of phi; psi is fixed.

    It returns (weight * -mean D(reconstructions), metrics, batch_stats), with None for the term of
    a run without a discriminator.
    """

    def term(params, batch_stats, context: StepContext):
        if models.discriminator is None:
            return None, {}, batch_stats
        if not objective.adversarial_weight * objective.discriminator_factor:
            return jnp.zeros(()), {"gan_loss": jnp.zeros(())}, batch_stats
        started, factor = _started(objective, context.step)
        weights = stop_gradient(params["discriminator"])
        logits, updated = _discriminate(models, weights, batch_stats, context.reconstructions)
        gan_loss = jnp.where(started, generator_loss(logits), 0.0)
        weighted = objective.adversarial_weight * factor * gan_loss
        # Before the discriminator's start this call must leave its statistics unchanged.
        batch_stats = jax.tree.map(lambda a, b: jnp.where(started, a, b), updated, batch_stats)
        return weighted, {"gan_loss": gan_loss}, batch_stats

    return term


def discriminator_loss(models: Models, objective: Objective):
    """Build the discriminator's loss: hinge loss of psi, optionally with LeCam; phi is fixed."""

    def lecam(batch_stats, logits_real, logits_fake):
        if not objective.lecam_weight:
            return jnp.zeros(()), batch_stats
        means = {"real": logits_real.mean(), "fake": logits_fake.mean()}
        ema = batch_stats["lecam"]
        loss = lecam_loss(means["real"], means["fake"], ema["real"], ema["fake"])
        ema = optax.incremental_update(stop_gradient(means), ema, 1.0 - objective.lecam_decay)
        return objective.lecam_weight * loss, {**batch_stats, "lecam": ema}

    def loss(params, batch_stats, context: StepContext):
        weights = params["discriminator"]
        fake = stop_gradient(context.reconstructions)
        logits_real, batch_stats = _discriminate(models, weights, batch_stats, context.images)
        logits_fake, batch_stats = _discriminate(models, weights, batch_stats, fake)
        _, factor = _started(objective, context.step)
        lecam_value, batch_stats = lecam(batch_stats, logits_real, logits_fake)
        total = factor * hinge_loss(logits_real, logits_fake) + lecam_value
        metrics = {
            "d_loss": total,
            "lecam_loss": lecam_value,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        return total, metrics, batch_stats

    return loss


def _started(objective: Objective, step: jax.Array):
    """Whether the GAN terms are active at this step, and the factor of the hinge loss."""
    started = step >= objective.discriminator_start
    return started, jnp.where(started, objective.discriminator_factor, 0.0)


def _discriminate(models: Models, weights, batch_stats, images):
    """The discriminator's logits in train mode, and the updated statistics."""
    variables = {"params": weights, "batch_stats": batch_stats["discriminator"]}
    logits, updated = models.discriminator.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    return logits, {**batch_stats, "discriminator": updated["batch_stats"]}
