"""The three optimizers: AdamW with PyTorch's gradient clipping.

A network has hundreds of leaves of a few dozen shapes. What treats each leaf alone is traced once
for each shape: a seventh off the time that the whole step takes to trace.
"""

import functools
from collections.abc import Callable
from typing import Any

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
        norm = global_norm(updates) if norm is None else norm
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
    return leafwise(
        optax.chain(
            clip_by_global_norm(max_grad_norm),
            optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
        )
    )


def leafwise(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, with the same state, traced once for each shape of a leaf.

    Its `update` must treat each leaf alone, but for the gradients' global `norm`, which it is
    given.
    """
    one = jax.jit(optax.with_extra_args_support(optimizer).update)

    def update(updates, state, params=None, *, norm=None, **others):
        others["norm"] = global_norm(updates) if norm is None else norm
        leaves, structure = jax.tree.flatten(updates)

        def of_leaves(part):
            return jax.tree.structure(part) == structure

        # The parts of the state that each leaf has for itself, and those, such as counts, that all
        # share: every leaf has them, and gives the same ones back.
        parts, frame = jax.tree.flatten(state, is_leaf=of_leaves)
        own = [jax.tree.leaves(p) if of_leaves(p) else [p] * len(leaves) for p in parts]
        states = [frame.unflatten([part[i] for part in own]) for i in range(len(leaves))]
        rows = zip(leaves, states, structure.flatten_up_to(params), strict=True)
        updated, states = zip(*(one(*row, **others) for row in rows), strict=True)
        own = [frame.flatten_up_to(state) for state in states]
        parts = [
            structure.unflatten([state[k] for state in own]) if of_leaves(part) else own[0][k]
            for k, part in enumerate(parts)
        ]
        return structure.unflatten(updated), frame.unflatten(parts)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def as_held(opt_state: Any, held: Any) -> Any:
    """The template of `adamw`'s state in the form that a checkpoint has it in.

    A schedule's state has a count, a constant rate's has nothing, and either may have been saved.

    Args:
      opt_state: the template.
      held: what the checkpoint says of it, with None for what has nothing.
    """
    clip, (adam, decay, rate) = opt_state
    if (held[1][2] is None) == isinstance(rate, optax.EmptyState):
        return opt_state
    saved = optax.EmptyState() if held[1][2] is None else optax.ScaleByScheduleState(adam.count)
    return clip, (adam, decay, saved)


def as_wanted(opt_state: Any, template: Any) -> Any:
    """A restored state of `adamw` in the template's form: a schedule counts Adam's steps."""
    clip, (adam, decay, rate) = opt_state
    wanted = template[1][2]
    if type(rate) is type(wanted):
        return opt_state
    if isinstance(wanted, optax.ScaleByScheduleState):
        wanted = optax.ScaleByScheduleState(jnp.copy(adam.count))
    return clip, (adam, decay, wanted)


def by_leaf(function: Callable[..., jax.Array]) -> Callable:
    """A function of trees, traced once for each shape of their leaves, which it treats alone."""
    once = jax.jit(function)
    return lambda *trees: jax.tree.map(once, *trees)


def global_norm(tree) -> jax.Array:
    """`optax.tree.norm`, traced once for each shape."""
    return jnp.sqrt(sum(jax.tree.leaves(_squared_norms(tree))))


_squared_norms = by_leaf(functools.partial(optax.tree.norm, squared=True))
