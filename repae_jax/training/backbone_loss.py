"""The backbone's loss: L_DIFF(theta), and L_REPA(theta, omega)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.conditioning.base import null_condition, replace_where
from repae_jax.models.networks import Models
from repae_jax.objectives.alignment import alignment_loss, dispersive_loss
from repae_jax.objectives.ddpm import variational_bound
from repae_jax.objectives.diffusion import cosine_loss, denoising_loss
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.terms import Term, weighted_sum
from repae_jax.training.forward import StepContext
from repae_jax.training.latents import Noisy, add_noise, normalize


class BackbonePass(NamedTuple):
    """The inputs shared by the terms of the backbone's loss."""

    output: BackboneOutput
    latents: jax.Array  # (B, h, w, c), normalized
    noisy: Noisy
    objective: Objective
    context: StepContext


def _alignment(forward: BackbonePass):
    context, end = forward.context, forward.objective.alignment_end
    if not context.teacher_tokens:
        return None
    loss = alignment_loss(forward.output.projections, context.teacher_tokens)
    return jnp.where(context.step < end, loss, 0.0) if end else loss


def _variational_bound(forward: BackbonePass):
    """L_vb of a learned variance; latents and predicted noise are fixed in it."""
    if "variance" not in forward.output.extra:
        return None
    fixed = (forward.latents, forward.noisy.latents, forward.output.prediction)
    variance = forward.output.extra["variance"]
    return variational_bound(*map(stop_gradient, fixed), variance, forward.context.draws.time)


def _class_token(forward: BackbonePass):
    """The loss of the class token's velocity (REG, arXiv 2507.01467, section 3)."""
    if forward.noisy.class_target is None:
        return None
    return denoising_loss(forward.output.extra["class_token"], forward.noisy.class_target)


BACKBONE_TERMS = (  # L_DIFF(theta) and L_REPA(theta, omega)
    Term("denoising_loss", lambda it: denoising_loss(it.output.prediction, it.noisy.target)),
    Term(
        "cosine_loss", lambda it: cosine_loss(it.output.prediction, it.noisy.target),
        "cosine_weight", optional=True,
    ),
    Term("vlb_loss", _variational_bound),
    Term(
        "dispersive_loss", lambda it: dispersive_loss(it.output.tokens), "dispersive_weight",
        optional=True,
    ),
    Term("proj_loss", _alignment, "backbone_alignment"),
    Term("class_token_loss", _class_token, "class_token_weight"),
)  # fmt: skip


def backbone_loss(models: Models, objective: Objective):
    """Build the backbone's loss, of theta and omega.

    With `objective.stop_gradient`, the latents carry no gradient to phi.
    """
    backbone = models.backbone

    def loss(params, batch_stats, context: StepContext):
        # This alone isolates the VAE from the diffusion loss.
        latents = stop_gradient(context.latents) if objective.stop_gradient else context.latents

        latents, batch_stats = normalize(
            models, batch_stats, latents, train=objective.latent_norm == "batch"
        )
        noisy = add_noise(objective, latents, context)
        condition = context.condition
        null = null_condition(backbone.conditioner, context.frozen)
        if null is not None:
            condition = replace_where(context.draws.condition_drop, condition, null)
        weights = {"params": params["backbone"], **context.frozen.get("backbone", {})}
        output = backbone.apply(weights, *noisy.inputs(condition))

        forward = BackbonePass(output, latents, noisy, objective, context)
        total, metrics = weighted_sum(BACKBONE_TERMS, objective, forward)
        return total, metrics | {"sit_loss": total}, batch_stats

    return loss
