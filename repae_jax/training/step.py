"""The train step, one pure function:

    L = L_DIFF(theta) + lambda * L_REPA(theta, phi, omega) + eta * L_REG(phi)

theta is the backbone, omega its projection heads, phi the VAE, psi its discriminator (REPA-E,
arXiv 2504.10483, equation 3). This file has the step, and the loss of all networks. The losses of
phi (tokenizer_loss.py), theta (backbone_loss.py) and psi (adversarial.py) share one forward pass
(forward.py), and `stop_gradient` selects the networks that a term trains. The optimizers given to
the builder fix the trained networks:

    repae   optimizers for "backbone", "tokenizer" and "discriminator"
    repa    an optimizer for "backbone" alone, objective.latent_norm = "fixed"
    vanilla as repa, without teachers
    vae     optimizers for "tokenizer" and "discriminator", models without a backbone

The paper's ablations are fields of `Objective`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from repae_jax.models.networks import Models
from repae_jax.objectives.objective import Objective
from repae_jax.runs.optimizers import by_leaf, global_norm
from repae_jax.runs.state import TrainState, averaged_variables
from repae_jax.training.accumulation import accumulate_gradients
from repae_jax.training.adversarial import discriminator_loss, waiting_steps
from repae_jax.training.backbone_loss import backbone_loss
from repae_jax.training.forward import Batch, make_shared_forward
from repae_jax.training.noise import Draws
from repae_jax.training.tokenizer_loss import tokenizer_loss

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, Draws], tuple[TrainState, Metrics]]

GRAD_NORM = {
    "backbone": "grad_norm_sit", "tokenizer": "grad_norm_vae", "discriminator": "grad_norm_disc",
    "foundation": "grad_norm_vf",
}  # fmt: skip


def make_train_step(
    models: Models,
    objective: Objective,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    ema_decay: float = 0.9999,
    tokenizer_ema_decay: float = 0.0,
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
      tokenizer_ema_decay: of the tokenizer's, if the state has one.
      micro_batches: see `accumulate_gradients`.
      gather: gathers the networks of a sharded state (see `parallel.sharding`).
    """
    loss = make_loss(models, objective, tuple(optimizers), gather)
    gradients = accumulate_gradients(jax.grad(loss, has_aux=True), micro_batches)
    apply = by_leaf(optax.apply_updates)
    waiting = {"discriminator": waiting_steps(models, objective)}

    def follow(name, new, old):
        """The moving average of a part of the state after the step."""
        decay = tokenizer_ema_decay if name == "tokenizer" else ema_decay
        return by_leaf(lambda n, o: optax.incremental_update(n, o, 1.0 - decay))(new, old)

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
        ema = {name: follow(name, new, state.ema[name]) for name, new in followed.items()}
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
