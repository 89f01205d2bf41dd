"""The train step, one pure function:

    L = L_DIFF(theta) + lambda * L_REPA(theta, phi, omega) + eta * L_REG(phi)

theta is the backbone, omega its projection heads, phi the VAE, psi its discriminator (REPA-E,
arXiv 2504.10483, equation 3). The file reads from top to bottom: the step, the loss, the forward
pass shared by its terms, and for each network its terms and their sum. `stop_gradient` selects the
networks that a term trains. The optimizers given to the builder fix the trained networks:

    repae   optimizers for "backbone", "tokenizer" and "discriminator"
    repa    an optimizer for "backbone" alone, objective.latent_norm = "fixed"
    vanilla as repa, without teachers
    vae     optimizers for "tokenizer" and "discriminator", models without a backbone

The paper's ablations are fields of `Objective`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.conditioning.base import Arrays, replace_where
from repae_jax.models.networks import Models, teacher_tokens
from repae_jax.models.tokenizers.base import decode, encode
from repae_jax.models.tokenizers.distributions import Gaussian, LatentDistribution
from repae_jax.objectives.adversarial import generator_loss, hinge_loss, lecam_loss
from repae_jax.objectives.alignment import alignment_loss, spatial_norm
from repae_jax.objectives.ddpm import variational_bound
from repae_jax.objectives.diffusion import cosine_loss, denoising_loss
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.objectives.reconstruction import RECONSTRUCTION
from repae_jax.objectives.terms import Term, weighted_sum
from repae_jax.runs.optimizers import by_leaf, global_norm
from repae_jax.runs.state import TrainState, averaged_variables, tokenizer_variables
from repae_jax.training.accumulation import accumulate_gradients
from repae_jax.training.noise import Draws
from repae_jax.utils.images import to_float

Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, Draws], tuple[TrainState, Metrics]]

GRAD_NORM = {
    "backbone": "grad_norm_sit", "tokenizer": "grad_norm_vae", "discriminator": "grad_norm_disc",
}  # fmt: skip


def make_train_step(
    models: Models,
    objective: Objective,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    ema_decay: float = 0.9999,
    micro_batches: int = 1,
    gather: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainStep:
    """Build the function `train_step(state, batch, draws) -> (state, metrics)`.

    The batch holds "image" (uint8 (B, H, W, 3)) and the arrays of the backbone's condition, such as
    "label" (int32 (B,), see `Conditioner.spec`). It may hold "teacher_tokens", a tuple of
    (B, N, D_k), which replace the teachers' forward pass, and for a frozen VAE "latent_mean" and
    "latent_std" (B, h, w, c), which replace the encoder. All gradients are taken at the state
    before the step.

    A step with a NaN or infinite loss or gradient is skipped: it changes only the step number, on
    all devices, and its metric "skipped" is 1.

    Args:
      models: the networks.
      objective: coefficients and variants of the terms.
      optimizers: one per trained network; networks without one are frozen.
      ema_decay: decay per step of the backbone's moving average, in [0, 1).
      micro_batches: see `accumulate_gradients`.
      gather: gathers the networks of a sharded state (see `parallel.sharding`).
    """
    loss = make_loss(models, objective, tuple(optimizers), gather)
    gradients = accumulate_gradients(jax.grad(loss, has_aux=True), micro_batches)
    apply = by_leaf(optax.apply_updates)
    follow = by_leaf(lambda new, old: optax.incremental_update(new, old, 1.0 - ema_decay))

    def updated(state: TrainState, grads, norms, batch_stats) -> TrainState:
        params, opt_state = dict(state.params), dict(state.opt_state)
        for name, optimizer in optimizers.items():
            optimizer = optax.with_extra_args_support(optimizer)
            updates, opt_state[name] = optimizer.update(
                grads[name], state.opt_state[name], state.params[name], norm=norms[name]
            )
            params[name] = apply(state.params[name], updates)
        state = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)
        followed = averaged_variables(state)
        old = {name: state.ema[name] for name in followed}
        ema = follow(followed, old)
        return state.replace(ema={**state.ema, **ema})

    def unchanged(state: TrainState, *_) -> TrainState:
        return state

    def train_step(state: TrainState, batch: Batch, draws: Draws) -> tuple[TrainState, Metrics]:
        trained = {name: state.params[name] for name in optimizers}
        grads, (metrics, batch_stats) = gradients(trained, state, batch, draws)
        norms = {name: global_norm(grads[name]) for name in optimizers}
        metrics |= {GRAD_NORM[name]: norm for name, norm in norms.items()}
        # The metrics include the gradients' norms, so checking them covers all gradients. `cond`
        # keeps one state in memory, where `jnp.where` would keep two.
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
        state = state.replace(step=state.step + 1)
        state = jax.lax.cond(finite, updated, unchanged, state, grads, norms, batch_stats)
        return state, metrics | {"skipped": 1.0 - finite.astype(jnp.float32)}

    return train_step


def make_loss(
    models: Models,
    objective: Objective,
    trained: tuple[str, ...],
    gather: Callable[[TrainState], TrainState] = lambda state: state,
):
    """Build the function `loss(trained_params, state, batch, draws)`.

    It returns (scalar, (metrics, batch_stats)). The scalar is the loss of all networks:
    `stop_gradient` selects the networks that each part trains.
    """
    losses = []
    if "tokenizer" in trained:
        losses.append(tokenizer_loss(models, objective))
    if "discriminator" in trained:
        losses.append(discriminator_loss(models, objective))
    if "backbone" in trained:
        losses.append(backbone_loss(models, objective))
    shared_forward = make_shared_forward(
        models, reconstruct="tokenizer" in trained, spatial=objective.spatial_norm
    )

    def loss(trained_params, state: TrainState, batch: Batch, draws: Draws):
        state = gather(state.replace(params={**state.params, **trained_params}))
        params = state.params
        context = shared_forward(params, state, batch, draws)
        # The smallest standard deviation of a channel: near zero when the latents collapse.
        metrics = {"latent_std": stop_gradient(context.latents).std((0, 1, 2)).min()}
        total, batch_stats = jnp.zeros(()), dict(state.batch_stats)
        for network_loss in losses:
            value, its_metrics, batch_stats = network_loss(params, batch_stats, context)
            total += value
            metrics |= its_metrics
        return total, (metrics, batch_stats)

    return loss


class StepContext(NamedTuple):
    """The inputs and forward results shared by the terms of one step."""

    step: jax.Array  # completed steps
    draws: Draws
    images: jax.Array | None  # (B, H, W, 3) in [-1, 1]; None with cached latents
    condition: Arrays  # the backbone's condition; {} without a backbone
    posterior: LatentDistribution
    latents: jax.Array  # (B, h, w, c) before normalization
    reconstructions: jax.Array | None  # (B, H, W, 3)
    teacher_tokens: tuple[jax.Array, ...]  # (B, N, D_k) each
    frozen: Mapping


def make_shared_forward(models: Models, *, reconstruct: bool, spatial: float = 0.0):
    """Build the shared forward pass: teachers, encoder, and if `reconstruct` the decoder.

    A share `spatial` above 0 normalizes the teachers' tokens, see `alignment.spatial_norm`.
    """
    tokenizer = models.tokenizer
    condition = models.backbone.conditioner.spec() if models.backbone is not None else ()

    def tokens_of(batch, frozen):
        if "teacher_tokens" in batch:
            return tuple(batch["teacher_tokens"])
        if not models.teachers:
            return ()
        return tuple(teacher_tokens(models, frozen["teachers"], batch["image"]).values())

    def teachers(batch, frozen):
        found = tokens_of(batch, frozen)
        return tuple(spatial_norm(tokens, spatial) for tokens in found) if spatial else found

    def cached_posterior(batch):
        if "latent_mean" not in batch:
            return None
        return Gaussian.from_std(batch["latent_mean"], batch["latent_std"])

    def shared_forward(params, state: TrainState, batch: Batch, draws: Draws) -> StepContext:
        variables = tokenizer_variables(params, state.frozen)
        images, posterior = None, cached_posterior(batch)
        if posterior is None:
            images = to_float(batch["image"])
            posterior = encode(tokenizer, variables, images)
        latents = posterior.sample(draws.posterior_noise)
        reconstructions = None
        if reconstruct:
            reconstructions = decode(tokenizer, variables, latents)
        return StepContext(
            step=state.step,
            draws=draws,
            images=images,
            condition={name: batch[name] for name in condition},
            posterior=posterior,
            latents=latents,
            reconstructions=reconstructions,
            teacher_tokens=teachers(batch, state.frozen),
            frozen=state.frozen,
        )

    return shared_forward


class TokenizerPass(NamedTuple):
    """The inputs shared by the terms of the tokenizer's loss."""

    models: Models
    objective: Objective
    params: Mapping
    batch_stats: Mapping
    context: StepContext
    adversarial: jax.Array | None  # weight * -mean D(reconstructions), once it has started


def _reconstruction(forward: TokenizerPass):
    distance = RECONSTRUCTION[forward.objective.reconstruction]
    return distance(forward.context.images, forward.context.reconstructions)


def _perceptual(forward: TokenizerPass):
    lpips, context = forward.models.lpips, forward.context
    if lpips is None:
        return jnp.zeros(())
    return lpips.apply(context.frozen["lpips"], context.images, context.reconstructions).mean()


def _tokenizer_alignment(forward: TokenizerPass):
    """L_REPA with theta and omega fixed, at the same times and noise as the backbone's terms."""
    models, context = forward.models, forward.context
    if models.backbone is None or not context.teacher_tokens:
        return None
    # This term uses running statistics and drops no condition.
    latents = _normalize(models, forward.batch_stats, context.latents, train=False)[0]
    path = PATHS[forward.objective.interpolant]
    noisy, _ = interpolate(path, latents, context.draws.noise, context.draws.time)
    weights = {
        "params": stop_gradient(forward.params["backbone"]),
        **context.frozen.get("backbone", {}),
    }
    inputs = (noisy, context.draws.time, context.condition)
    projections = models.backbone.apply(weights, *inputs, method="project")
    return alignment_loss(projections, context.teacher_tokens)


TOKENIZER_TERMS = (  # L_REG(phi), and L_REPA with gradients to phi alone
    Term("reconstruction_loss", _reconstruction, "reconstruction_weight", logs_weight=True),
    Term("perceptual_loss", _perceptual, "perceptual_weight", logs_weight=True),
    Term("kl_loss", lambda it: it.context.posterior.kl().mean(), "kl_weight", logs_weight=True),
    Term("weighted_gan_loss", lambda it: it.adversarial),
    Term("vae_align_loss", _tokenizer_alignment, "tokenizer_alignment"),
)


def tokenizer_loss(models: Models, objective: Objective):
    """Build the tokenizer's loss, of phi; theta, omega and psi are fixed."""

    def adversarial(params, batch_stats, context: StepContext):
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

    def loss(params, batch_stats, context: StepContext):
        weighted, gan_metrics, new_stats = adversarial(params, batch_stats, context)
        forward = TokenizerPass(models, objective, params, batch_stats, context, weighted)
        total, metrics = weighted_sum(TOKENIZER_TERMS, objective, forward)
        return total, metrics | gan_metrics | {"vae_loss": total}, new_stats

    return loss


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


class BackbonePass(NamedTuple):
    """The inputs shared by the terms of the backbone's loss."""

    output: BackboneOutput
    target: jax.Array  # (B, h, w, c), see `interpolate`
    latents: jax.Array  # (B, h, w, c), normalized
    noisy: jax.Array  # (B, h, w, c)
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
    fixed = (forward.latents, forward.noisy, forward.output.prediction)
    variance = forward.output.extra["variance"]
    return variational_bound(*map(stop_gradient, fixed), variance, forward.context.draws.time)


BACKBONE_TERMS = (  # L_DIFF(theta) and L_REPA(theta, omega)
    Term("denoising_loss", lambda it: denoising_loss(it.output.prediction, it.target)),
    Term(
        "cosine_loss", lambda it: cosine_loss(it.output.prediction, it.target), "cosine_weight",
        optional=True,
    ),
    Term("vlb_loss", _variational_bound),
    Term("proj_loss", _alignment, "backbone_alignment"),
)  # fmt: skip


def backbone_loss(models: Models, objective: Objective):
    """Build the backbone's loss, of theta and omega.

    With `objective.stop_gradient`, the latents carry no gradient to phi.
    """
    path = PATHS[objective.interpolant]
    backbone, null = models.backbone, models.backbone.conditioner.null()

    def loss(params, batch_stats, context: StepContext):
        # This alone isolates the VAE from the diffusion loss.
        latents = stop_gradient(context.latents) if objective.stop_gradient else context.latents

        latents, batch_stats = _normalize(
            models, batch_stats, latents, train=objective.latent_norm == "batch"
        )
        noise, time = context.draws.noise, context.draws.time
        noisy, target = interpolate(path, latents, noise, time, least_time=objective.least_time)
        condition = context.condition
        if null is not None:
            condition = replace_where(context.draws.condition_drop, condition, null)
        weights = {"params": params["backbone"], **context.frozen.get("backbone", {})}
        output = backbone.apply(weights, noisy, time, condition)

        forward = BackbonePass(output, target, latents, noisy, objective, context)
        total, metrics = weighted_sum(BACKBONE_TERMS, objective, forward)
        return total, metrics | {"sit_loss": total}, batch_stats

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


def _normalize(models: Models, batch_stats, latents, *, train: bool):
    """The latents after LatentNorm, and the updated statistics."""
    variables = {"batch_stats": batch_stats["latent_norm"]}
    if not train:
        return models.latent_norm.apply(variables, latents, train=False), batch_stats
    latents, updated = models.latent_norm.apply(
        variables, latents, train=True, mutable=["batch_stats"]
    )
    return latents, {**batch_stats, "latent_norm": updated["batch_stats"]}
