"""The terms of a step that compare reconstructions with images."""

import jax
import jax.numpy as jnp

from repae_jax.models.networks import Models
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.reconstruction import RECONSTRUCTION
from repae_jax.training.forward import StepContext


def pixel_loss(objective: Objective, context: StepContext) -> jax.Array:
    """The distance of the pixels, `objective.reconstruction`, scalar."""
    distance = RECONSTRUCTION[objective.reconstruction]
    return distance(context.images, context.reconstructions)


def perceptual_loss(models: Models, objective: Objective, context: StepContext) -> jax.Array:
    """LPIPS, scalar; 0 before `objective.perceptual_start`, and without the network."""
    if models.lpips is None:
        return jnp.zeros(())
    variables = context.frozen["lpips"]
    loss = models.lpips.apply(variables, context.images, context.reconstructions).mean()
    start = objective.perceptual_start
    return jnp.where(context.step >= start, loss, 0.0) if start else loss


def reconstruction_loss(
    models: Models, objective: Objective, context: StepContext, reconstructions: jax.Array
) -> jax.Array:
    """The weighted sum of both for given reconstructions (B, H, W, 3), scalar.

    An adaptive weight compares another term with it.
    """
    context = context._replace(reconstructions=reconstructions)
    pixels = objective.reconstruction_weight * pixel_loss(objective, context)
    return pixels + objective.perceptual_weight * perceptual_loss(models, objective, context)
