"""The latents of a step: normalized, and noisy."""

from typing import Any, NamedTuple

import jax

from repae_jax.models.networks import Models
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.training.forward import StepContext


def normalize(models: Models, batch_stats, latents, *, train: bool):
    """The latents after LatentNorm, and the updated statistics."""
    variables = {"batch_stats": batch_stats["latent_norm"]}
    if not train:
        return models.latent_norm.apply(variables, latents, train=False), batch_stats
    latents, updated = models.latent_norm.apply(
        variables, latents, train=True, mutable=["batch_stats"]
    )
    return latents, {**batch_stats, "latent_norm": updated["batch_stats"]}


class Noisy(NamedTuple):
    """The noisy latents and class token of the draws, with their targets; see `interpolate`."""

    latents: jax.Array  # (B, h, w, c)
    target: jax.Array  # (B, h, w, c)
    time: jax.Array  # (B,)
    class_token: jax.Array | None  # (B, D), of a backbone that denoises one
    class_target: jax.Array | None  # (B, D)

    def inputs(self, condition) -> tuple[Any, ...]:
        """The backbone's arguments."""
        class_token = () if self.class_token is None else (self.class_token,)
        return self.latents, self.time, condition, *class_token


def add_noise(objective: Objective, latents, context: StepContext, time=None) -> Noisy:
    """Add the draws' noise to normalized latents, and to the class token if there is one.

    `time` (B,) replaces the draws' times.
    """
    path, draws = PATHS[objective.interpolant], context.draws
    time = draws.time if time is None else time

    def noised(x, noise):
        noise = objective.noise_scale * noise
        return interpolate(path, x, noise, time, least_time=objective.least_time)

    of_class = (None, None)
    if context.class_token is not None:
        of_class = noised(context.class_token, draws.class_noise)
    return Noisy(*noised(latents, draws.noise), time, *of_class)
