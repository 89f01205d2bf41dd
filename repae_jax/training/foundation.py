"""VF loss in a step: the latents are aligned with a frozen encoder's tokens (VA-VAE)."""

import jax

from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.base import decode, encode
from repae_jax.objectives.adaptive import adaptive_weight, gradients_at
from repae_jax.objectives.foundation import foundation_loss
from repae_jax.objectives.objective import Objective
from repae_jax.runs.state import tokenizer_variables
from repae_jax.training.forward import StepContext, draw_latents
from repae_jax.training.reconstruction import reconstruction_loss

EPSILON, LIMIT = 1e-4, 1e8  # of the adaptive weight, as published


def foundation_term(models: Models, objective: Objective):
    """Build the tokenizer's VF loss, of phi and of the projection.

    It returns (weight * (distance + cosine), metrics), with None for the term of a run without it.
    The first teacher is the encoder. The adaptive weight compares the gradients of reconstruction
    and VF loss at the kernel of the encoder's last layer (arXiv 2501.01423, equation 6).
    """

    def parts(params, tokens, latents):
        projected = models.foundation.apply({"params": params["foundation"]}, latents)
        return foundation_loss(
            projected, tokens,
            distance_margin=objective.vf_distance_margin, cosine_margin=objective.vf_cosine_margin,
        )  # fmt: skip

    def adaptive(params, tokens, context: StepContext):
        def forward(tokenizer):
            variables = tokenizer_variables({"tokenizer": tokenizer}, context.frozen)
            posterior = encode(models.tokenizer, variables, context.images)
            latents, decoded = draw_latents(objective, posterior, context.draws)
            return latents, decode(models.tokenizer, variables, decoded)

        gradients = gradients_at(
            models.tokenizer.last_encoder_layer,
            params["tokenizer"],
            forward,
            lambda outputs: reconstruction_loss(models, objective, context, outputs[1]),
            lambda outputs: sum(parts(params, tokens, outputs[0])),
        )
        return adaptive_weight(*gradients, epsilon=EPSILON, limit=LIMIT)

    def term(params, context: StepContext):
        if models.foundation is None:
            return None, {}
        latents, tokens = context.latents, context.teacher_tokens[0]
        tokens = tokens[:, : latents.shape[1] * latents.shape[2]]
        distance, cosine = parts(params, tokens, latents)
        metrics = {"vf_distance_loss": distance, "vf_cosine_loss": cosine}
        weight: jax.Array | float = objective.vf_weight
        if objective.vf_adaptive:
            metrics["vf_adaptive_weight"] = adaptive(params, tokens, context)
            weight *= metrics["vf_adaptive_weight"]
        return weight * (distance + cosine), metrics

    return term
