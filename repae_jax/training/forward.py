"""The forward pass that the terms of a step share: teachers, encoder, decoder."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.networks import Models, condition_of, teacher_tokens
from repae_jax.models.tokenizers.base import decode, encode
from repae_jax.models.tokenizers.distributions import Gaussian, LatentDistribution
from repae_jax.objectives.alignment import spatial_norm
from repae_jax.objectives.objective import Objective
from repae_jax.runs.state import TrainState, tokenizer_variables
from repae_jax.training.noise import Draws
from repae_jax.utils.images import to_float

Batch = Mapping[str, jax.Array]


class StepContext(NamedTuple):
    """The inputs and forward results shared by the terms of one step."""

    step: jax.Array  # completed steps
    draws: Draws
    images: jax.Array | None  # (B, H, W, 3) in [-1, 1]; None with cached latents
    condition: Arrays  # the backbone's condition; {} without a backbone
    posterior: LatentDistribution
    latents: jax.Array  # (B, h, w, c) before normalization
    decoded: jax.Array  # (B, h, w, c), the latents with the decoder's noise
    reconstructions: jax.Array | None  # (B, H, W, 3)
    teacher_tokens: tuple[jax.Array, ...]  # (B, N, D_k) each; N + 1 with a class token
    class_token: jax.Array | None  # (B, D) of the first teacher, if the backbone denoises it
    frozen: Mapping


def draw_latents(
    objective: Objective, posterior: LatentDistribution, draws: Draws
) -> tuple[jax.Array, jax.Array]:
    """The latents (B, h, w, c), and what the decoder sees of them: with its noise, if any."""
    of_mean = objective.posterior == "mean"
    latents = posterior.mean if of_mean else posterior.sample(draws.posterior_noise)
    noise = draws.decoder_noise
    return latents, latents if noise is None else latents + noise


def make_shared_forward(models: Models, objective: Objective, *, reconstruct: bool):
    """Build the shared forward pass: teachers, encoder, and if `reconstruct` the decoder."""
    tokenizer = models.tokenizer
    gamma = objective.spatial_norm
    patches = models.backbone.grid**2 if models.backbone is not None else 0
    with_class = class_token_dim(models.backbone) > 0
    # A cache may keep tokens for other runs.
    aligned = models.backbone is not None and models.backbone.teacher_dims

    def needed(tokens):
        """A teacher's cached tokens, without a class token that this backbone has no use for."""
        unused = not with_class and tokens.shape[1] == patches + 1
        return tokens[:, :patches] if unused else tokens

    def tokens_of(batch, frozen):
        if "teacher_tokens" in batch:
            return tuple(map(needed, batch["teacher_tokens"])) if aligned else ()
        if not models.teachers:
            return ()
        return tuple(teacher_tokens(models, frozen["teachers"], batch["image"]).values())

    def conditions(batch, frozen):
        return {} if models.backbone is None else condition_of(models, frozen, batch)

    def normalized(tokens):
        if not gamma:
            return tokens
        of_patches = spatial_norm(tokens[:, :patches], gamma)
        return jnp.concatenate([of_patches, tokens[:, patches:]], axis=1)

    def cached_posterior(batch):
        if "latent_mean" not in batch:
            return None
        return Gaussian.from_std(batch["latent_mean"], batch["latent_std"])

    def shared_forward(params, state: TrainState, batch: Batch, draws: Draws) -> StepContext:
        tokens = tokens_of(batch, state.frozen)
        variables = tokenizer_variables(params, state.frozen)
        images, posterior = None, cached_posterior(batch)
        if posterior is None:
            images = to_float(batch["image"])
            posterior = encode(tokenizer, variables, images)
        latents, decoded = draw_latents(objective, posterior, draws)
        reconstructions = decode(tokenizer, variables, decoded) if reconstruct else None
        return StepContext(
            step=state.step,
            draws=draws,
            images=images,
            condition=conditions(batch, state.frozen),
            posterior=posterior,
            latents=latents,
            decoded=decoded,
            reconstructions=reconstructions,
            teacher_tokens=tuple(map(normalized, tokens)),
            class_token=tokens[0][:, -1] if with_class else None,
            frozen=state.frozen,
        )

    return shared_forward
