"""The three optimizers: AdamW with PyTorch's gradient clipping."""

import jax
import jax.numpy as jnp
import optax


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scale by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.

    optax's own clips without the 1e-6, so results would differ in the sixth digit. Who knows the
    norm already gives it to `update` as `norm`.
    """

    def update(updates, state, params=None, *, norm=None, **others):
        del params, others
        norm = optax.global_norm(updates) if norm is None else norm
        factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def adamw(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    warmup_steps: int = 0,
    decay_steps: int = 0,
) -> optax.GradientTransformation:
    """Clipping to a global norm, then AdamW.

    The rate rises linearly over `warmup_steps`, then stays, or with `decay_steps` > 0 falls as a
    cosine to zero at step `decay_steps`, counted from the first.
    """
    rate = learning_rate
    if decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)
    elif warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.chain(
        clip_by_global_norm(max_grad_norm),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )
