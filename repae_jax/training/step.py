"""The train step, one pure function:

    L = L_DIFF(theta) + lambda * L_REPA(theta, phi, omega) + eta * L_REG(phi)

theta is the backbone, omega its projection heads, phi the VAE, psi its discriminator (REPA-E,
arXiv 2504.10483, equation 3). The file reads from top to bottom: the step, the loss, and for phi
and theta the terms and their sum. The terms share one forward pass (forward.py), and psi has its
loss in adversarial.py. `stop_gradient` selects the networks that a term trains. The optimizers
given to the builder fix the trained networks:

    repae   optimizers for "backbone", "tokenizer" and "discriminator"
    repa    an optimizer for "backbone" alone, objective.latent_norm = "fixed"
    vanilla as repa, without teachers
    vae     optimizers for "tokenizer" and "discriminator", models without a backbone

The paper's ablations are fields of `Objective`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.conditioning.base import null_condition, replace_where
from repae_jax.models.networks import Models
from repae_jax.objectives.alignment import alignment_loss, dispersive_loss
from repae_jax.objectives.ddpm import variational_bound
from repae_jax.objectives.diffusion import cosine_loss, denoising_loss
from repae_jax.objectives.objective import Objective
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.objectives.terms import Term, weighted_sum
from repae_jax.runs.optimizers import by_leaf, global_norm
from repae_jax.runs.state import TrainState, averaged_variables
from repae_jax.training.accumulation import accumulate_gradients
from repae_jax.training.adversarial import adversarial_term, discriminator_loss, waiting_steps
from repae_jax.training.forward import Batch, StepContext, make_shared_forward
from repae_jax.training.noise import Draws
from repae_jax.training.reconstruction import perceptual_loss, pixel_loss

Metrics = dict[str, jax.Array]
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

    The batch holds "image" (uint8 (B, H, W, 3)) and what the backbone's condition is made of, such
    as "label" (int32 (B,), see `condition_of`). It may hold "teacher_tokens", a tuple of
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
    waiting = {"discriminator": waiting_steps(models, objective)}

    def optimized(name, state: TrainState, grads, norms):
        """A network's parameters and its optimizer's state after the step."""
        before = state.params[name], state.opt_state[name]

        def update():
            optimizer = optax.with_extra_args_support(optimizers[name])
            updates, opt_state = optimizer.update(
                grads[name], state.opt_state[name], state.params[name], norm=norms[name]
            )
            return apply(state.params[name], updates), opt_state

        if not (steps := waiting.get(name, 0)):
            return update()
        return jax.lax.cond(state.step > steps, update, lambda: before)

    def updated(state: TrainState, grads, norms, batch_stats) -> TrainState:
        params, opt_state = dict(state.params), dict(state.opt_state)
        for name in optimizers:
            params[name], opt_state[name] = optimized(name, state, grads, norms)
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
    shared_forward = make_shared_forward(models, objective, reconstruct="tokenizer" in trained)

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


def _add_noise(objective: Objective, latents, context: StepContext) -> Noisy:
    """Add the draws' noise to normalized latents, and to the class token if there is one."""
    path, draws = PATHS[objective.interpolant], context.draws

    def noised(x, noise):
        noise = objective.noise_scale * noise
        return interpolate(path, x, noise, draws.time, least_time=objective.least_time)

    of_class = (None, None)
    if context.class_token is not None:
        of_class = noised(context.class_token, draws.class_noise)
    return Noisy(*noised(latents, draws.noise), draws.time, *of_class)


class TokenizerPass(NamedTuple):
    """The inputs shared by the terms of the tokenizer's loss."""

    models: Models
    objective: Objective
    params: Mapping
    batch_stats: Mapping
    context: StepContext
    adversarial: jax.Array | None  # weight * -mean D(reconstructions), once it has started


def _tokenizer_alignment(forward: TokenizerPass):
    """L_REPA with theta and omega fixed, at the same times and noise as the backbone's terms."""
    models, context = forward.models, forward.context
    if models.backbone is None or not context.teacher_tokens:
        return None
    # This term uses running statistics and drops no condition.
    latents = _normalize(models, forward.batch_stats, context.latents, train=False)[0]
    weights = {
        "params": stop_gradient(forward.params["backbone"]),
        **context.frozen.get("backbone", {}),
    }
    inputs = _add_noise(forward.objective, latents, context).inputs(context.condition)
    projections = models.backbone.apply(weights, *inputs, method="project")
    return alignment_loss(projections, context.teacher_tokens)


TOKENIZER_TERMS = (  # L_REG(phi), and L_REPA with gradients to phi alone
    Term(
        "reconstruction_loss", lambda it: pixel_loss(it.objective, it.context),
        "reconstruction_weight", logs_weight=True,
    ),
    Term(
        "perceptual_loss", lambda it: perceptual_loss(it.models, it.objective, it.context),
        "perceptual_weight", logs_weight=True,
    ),
    Term("kl_loss", lambda it: it.context.posterior.kl().mean(), "kl_weight", logs_weight=True),
    Term("weighted_gan_loss", lambda it: it.adversarial),
    Term("vae_align_loss", _tokenizer_alignment, "tokenizer_alignment"),
)  # fmt: skip


def tokenizer_loss(models: Models, objective: Objective):
    """Build the tokenizer's loss, of phi; theta, omega and psi are fixed."""
    adversarial = adversarial_term(models, objective)

    def loss(params, batch_stats, context: StepContext):
        weighted, gan_metrics, new_stats = adversarial(params, batch_stats, context)
        forward = TokenizerPass(models, objective, params, batch_stats, context, weighted)
        total, metrics = weighted_sum(TOKENIZER_TERMS, objective, forward)
        return total, metrics | gan_metrics | {"vae_loss": total}, new_stats

    return loss


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

        latents, batch_stats = _normalize(
            models, batch_stats, latents, train=objective.latent_norm == "batch"
        )
        noisy = _add_noise(objective, latents, context)
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


def _normalize(models: Models, batch_stats, latents, *, train: bool):
    """The latents after LatentNorm, and the updated statistics."""
    variables = {"batch_stats": batch_stats["latent_norm"]}
    if not train:
        return models.latent_norm.apply(variables, latents, train=False), batch_stats
    latents, updated = models.latent_norm.apply(
        variables, latents, train=True, mutable=["batch_stats"]
    )
    return latents, {**batch_stats, "latent_norm": updated["batch_stats"]}
