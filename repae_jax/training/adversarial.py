"""The discriminator in a step: the tokenizer's adversarial term, and the discriminator's own loss.

The loss applies it in train mode, and so updates its running statistics or power iterations. The
term of a PatchGAN does, too, once it has begun; that of a DINO discriminator applies it in
evaluation mode (`models/discriminators.py`). Both see the tokenizer before the step. RAE's code
updates the tokenizer first, and its discriminator sees a reconstruction of the updated decoder.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.base import decode
from repae_jax.objectives.adaptive import adaptive_weight, gradients_at
from repae_jax.objectives.adversarial import generator_loss, hinge_loss, lecam_loss
from repae_jax.objectives.diffaug import AUGMENTATIONS
from repae_jax.objectives.objective import Objective
from repae_jax.runs.state import tokenizer_variables
from repae_jax.training.forward import StepContext
from repae_jax.training.reconstruction import reconstruction_loss

# The places of the numbers in `Draws.augmentation`.
_IN_TERM, _FAKES, _IMAGES = range(3)


def adversarial_term(models: Models, objective: Objective):
    """Build the tokenizer's adversarial term, of phi; psi is fixed.

    It returns (weight * -mean D(reconstructions), metrics, batch_stats), with None for the term of
    a run without a discriminator.
    """
    judge, start = models.discriminator, generator_start(objective)

    def value(weights, batch_stats, context, reconstructions):
        """-mean D(reconstructions), and the updated statistics."""
        images = _augmented(objective, context, reconstructions, _IN_TERM)
        train = judge.generator_in_train_mode
        logits, updated = _discriminate(models, weights, batch_stats, context, images, train=train)
        return generator_loss(logits), updated

    def adaptive(params, weights, batch_stats, context):
        """The factor of the adversarial term by the gradients at the decoder's last layer."""
        latents = stop_gradient(context.decoded)

        def reconstruct(tokenizer):
            variables = tokenizer_variables({"tokenizer": tokenizer}, context.frozen)
            return decode(models.tokenizer, variables, latents)

        gradients = gradients_at(
            models.tokenizer.last_layer,
            params["tokenizer"],
            reconstruct,
            lambda reconstructions: reconstruction_loss(
                models, objective, context, reconstructions
            ),
            lambda reconstructions: value(weights, batch_stats, context, reconstructions)[0],
        )
        limits = {"epsilon": objective.adaptive_epsilon, "limit": objective.adaptive_limit}
        return adaptive_weight(*gradients, **limits)

    def term(params, batch_stats, context: StepContext):
        if judge is None:
            return None, {}, batch_stats
        if not objective.adversarial_weight * objective.discriminator_factor:
            return jnp.zeros(()), {"gan_loss": jnp.zeros(())}, batch_stats
        started, factor = _started(objective, context.step, start)
        weights = stop_gradient(params["discriminator"])
        loss, updated = value(weights, batch_stats, context, context.reconstructions)
        gan_loss = jnp.where(started, loss, 0.0)
        weighted, metrics = objective.adversarial_weight * factor * gan_loss, {"gan_loss": gan_loss}
        if objective.adaptive_weight:
            scale = jnp.where(started, adaptive(params, weights, batch_stats, context), 0.0)
            weighted, metrics = scale * weighted, {**metrics, "adaptive_weight": scale}
        # Before the term's start this call must leave the statistics unchanged.
        batch_stats = jax.tree.map(lambda a, b: jnp.where(started, a, b), updated, batch_stats)
        return weighted, metrics, batch_stats

    return _from(start if judge is not None and judge.waits else 0, term)


def discriminator_loss(models: Models, objective: Objective):
    """Build the discriminator's loss: hinge loss of psi, optionally with LeCam; phi is fixed."""
    judge = models.discriminator

    def lecam(batch_stats, logits_real, logits_fake):
        if not objective.lecam_weight:
            return jnp.zeros(()), batch_stats
        means = {"real": logits_real.mean(), "fake": logits_fake.mean()}
        ema = batch_stats["lecam"]
        loss = lecam_loss(means["real"], means["fake"], ema["real"], ema["fake"])
        ema = optax.incremental_update(stop_gradient(means), ema, 1.0 - objective.lecam_decay)
        return objective.lecam_weight * loss, {**batch_stats, "lecam": ema}

    def logits_of(weights, batch_stats, context, fakes):
        """Logits of images and fakes, and the statistics after both calls."""
        given = {
            "real": _augmented(objective, context, context.images, _IMAGES),
            "fake": _augmented(objective, context, fakes, _FAKES),
        }
        logits = {}
        for name in ("fake", "real") if judge.fakes_first else ("real", "fake"):
            logits[name], batch_stats = _discriminate(
                models, weights, batch_stats, context, given[name]
            )
        return logits["real"], logits["fake"], batch_stats

    def loss(params, batch_stats, context: StepContext):
        fakes = _fakes(models, objective, params, context)
        weights = params["discriminator"]
        logits_real, logits_fake, batch_stats = logits_of(weights, batch_stats, context, fakes)
        _, factor = _started(objective, context.step, objective.discriminator_start)
        lecam_value, batch_stats = lecam(batch_stats, logits_real, logits_fake)
        total = factor * hinge_loss(logits_real, logits_fake) + lecam_value
        metrics = {
            "d_loss": total,
            "lecam_loss": lecam_value,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        return total, metrics, batch_stats

    return _from(objective.discriminator_start if judge.waits else 0, loss)


def generator_start(objective: Objective) -> int:
    """The first step with the tokenizer's adversarial term."""
    return max(objective.discriminator_start, objective.generator_start)


def waiting_steps(models: Models, objective: Objective) -> int:
    """The number of steps before the discriminator's first, at which its optimizer waits."""
    judge = models.discriminator
    return objective.discriminator_start if judge is not None and judge.waits else 0


def _from(start: int, loss: Callable) -> Callable:
    """Skip the computation of a loss before the step `start`: its values are 0 until then."""
    if not start:
        return loss

    def skipping(params, batch_stats, context: StepContext):
        def compute():
            return loss(params, batch_stats, context)

        def skip():
            value, metrics, _ = jax.eval_shape(compute)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, metrics))
            return *zeros, dict(batch_stats)

        return jax.lax.cond(context.step >= start, compute, skip)

    return skipping


def _started(objective: Objective, step: jax.Array, start: int):
    """Whether a step lies at `start` or beyond, and the factor of the adversarial losses."""
    started = step >= start
    return started, jnp.where(started, objective.discriminator_factor, 0.0)


def _fakes(models: Models, objective: Objective, params, context: StepContext):
    """The reconstructions of the discriminator's loss."""
    fakes = stop_gradient(context.reconstructions)
    clean = objective.posterior == "mean" and context.draws.decoder_noise is None
    if objective.fake_latents == "mean" and not clean:
        variables = tokenizer_variables(params, context.frozen)
        fakes = decode(models.tokenizer, *stop_gradient((variables, context.posterior.mean)))
    if objective.fake_bytes:
        fakes = jnp.round((jnp.clip(fakes, -1.0, 1.0) + 1.0) * 127.5) / 127.5 - 1.0
    return fakes


def _augmented(objective: Objective, context: StepContext, images, place: int):
    """Images as the discriminator sees them, by the draws at one of the three places."""
    if context.draws.augmentation is None:
        return images
    return AUGMENTATIONS[objective.augmentation](images, context.draws.augmentation[:, place])


def _discriminate(models: Models, weights, batch_stats, context, images, *, train: bool = True):
    """The discriminator's logits, and the statistics, updated in train mode."""
    constants = context.frozen.get("discriminator", {})
    variables = {"params": weights, "batch_stats": batch_stats["discriminator"], **constants}
    if not train:
        return models.discriminator.apply(variables, images, train=False), batch_stats
    logits, updated = models.discriminator.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    return logits, {**batch_stats, "discriminator": updated["batch_stats"]}
