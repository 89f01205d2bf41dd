"""The tokenizer's loss: L_REG(phi), and the backbone's terms with gradients to phi alone."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from repae_jax.models.networks import Models
from repae_jax.objectives.alignment import alignment_loss
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.paths import PATHS
from repae_jax.objectives.prior import entropy_at_least_time, prior_times
from repae_jax.objectives.terms import Term, weighted_sum
from repae_jax.training.adversarial import adversarial_term
from repae_jax.training.forward import StepContext
from repae_jax.training.foundation import foundation_term
from repae_jax.training.latents import add_noise, normalize
from repae_jax.training.reconstruction import perceptual_loss, pixel_loss


class TokenizerPass(NamedTuple):
    """The inputs shared by the terms of the tokenizer's loss."""

    models: Models
    objective: Objective
    params: Mapping
    batch_stats: Mapping
    context: StepContext
    adversarial: jax.Array | None  # weight * -mean D(reconstructions), once it has started
    foundation: jax.Array | None  # weight * VF loss


def _tokenizer_alignment(forward: TokenizerPass):
    """L_REPA with theta and omega fixed, at the same times and noise as the backbone's terms."""
    models, context = forward.models, forward.context
    if models.backbone is None or not context.teacher_tokens:
        return None
    # This term uses running statistics and drops no condition.
    latents = normalize(models, forward.batch_stats, context.latents, train=False)[0]
    inputs = add_noise(forward.objective, latents, context).inputs(context.condition)
    weights = _fixed_backbone(forward)
    projections = models.backbone.apply(weights, *inputs, method="project")
    return alignment_loss(projections, context.teacher_tokens)


def _prior(forward: TokenizerPass):
    """LSGM's bound on KL(q || p_theta) of the normalized latents, with theta fixed.

    In nats: cross entropy minus entropy, summed over dimensions, mean over images. Normalization by
    the batch makes the cross entropy blind to the latents' scale; the entropy of the normalized
    latents is, too.
    """
    models, objective, context = forward.models, forward.objective, forward.context
    if models.backbone is None:
        return None
    path, of_batch = PATHS[objective.interpolant], objective.latent_norm == "batch"
    latents = context.latents
    var = latents.var((0, 1, 2)) if of_batch else forward.batch_stats["latent_norm"]["var"]
    log_scale = 0.5 * jnp.log(var + models.latent_norm.epsilon)
    log_scale = jnp.broadcast_to(log_scale, latents.shape[1:]).sum()
    entropy = context.posterior.entropy() - log_scale

    latents, _ = normalize(models, forward.batch_stats, latents, train=of_batch)
    least, scale = objective.prior_least_time, objective.noise_scale
    time, factor = prior_times(
        path, context.draws.prior_uniform, objective.prior_weighting, least, scale
    )
    noisy = add_noise(objective, latents, context, time)
    output = models.backbone.apply(_fixed_backbone(forward), *noisy.inputs(context.condition))
    error = jnp.square(output.prediction - noisy.target).sum((1, 2, 3))
    cross_entropy = factor * error + latents[0].size * entropy_at_least_time(path, least, scale)
    return (cross_entropy - entropy).mean()


def _fixed_backbone(forward: TokenizerPass):
    """The backbone's variables, behind a stop-gradient."""
    params = stop_gradient(forward.params["backbone"])
    return {"params": params, **forward.context.frozen.get("backbone", {})}


TOKENIZER_TERMS = (  # L_REG(phi), and the backbone's terms with gradients to phi alone
    Term(
        "reconstruction_loss", lambda it: pixel_loss(it.objective, it.context),
        "reconstruction_weight", logs_weight=True,
    ),
    Term(
        "perceptual_loss", lambda it: perceptual_loss(it.models, it.objective, it.context),
        "perceptual_weight", logs_weight=True,
    ),
    Term("kl_loss", lambda it: it.context.posterior.kl().mean(), "kl_weight", logs_weight=True),
    Term("prior_loss", _prior, "prior_weight", logs_weight=True, optional=True),
    Term("weighted_gan_loss", lambda it: it.adversarial),
    Term("weighted_vf_loss", lambda it: it.foundation),
    Term("vae_align_loss", _tokenizer_alignment, "tokenizer_alignment"),
)  # fmt: skip


def tokenizer_loss(models: Models, objective: Objective):
    """Build the tokenizer's loss, of phi; theta, omega and psi are fixed."""
    adversarial = adversarial_term(models, objective)
    foundation = foundation_term(models, objective)

    def loss(params, batch_stats, context: StepContext):
        weighted, gan_metrics, new_stats = adversarial(params, batch_stats, context)
        vf, vf_metrics = foundation(params, context)
        forward = TokenizerPass(models, objective, params, batch_stats, context, weighted, vf)
        total, metrics = weighted_sum(TOKENIZER_TERMS, objective, forward)
        return total, metrics | gan_metrics | vf_metrics | {"vae_loss": total}, new_stats

    return loss
