"""AdamW and Muon with PyTorch's gradient clipping, the optimizers of the trained networks.

A network has hundreds of leaves with a few dozen shapes. Functions that treat each leaf separately
are traced once per shape, which saves a seventh of the time to trace the complete step.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scale gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.

    optax's own clipping omits the 1e-6, so results would differ in the sixth digit. `update` takes
    the gradients' global norm as `norm`, and computes it if it is None.
    """

    def update(updates, state, params=None, *, norm=None, **others):
        del params, others
        norm = global_norm(updates) if norm is None else norm
        factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda u: u * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


# name -> (first rate, last rate, steps) -> the rate of a step
DECAYS = {
    "cosine": lambda first, last, steps: optax.cosine_decay_schedule(first, steps, last / first),
    "linear": optax.linear_schedule,
}


ADAMW, MUON = "adamw", "muon"
_MOMENTUM = 0.95  # of Muon
_SIZE = 0.2  # root mean square of Muon's updates at the rate 1, about that of AdamW's


def make_optimizer(name: str, **options: Any) -> optax.GradientTransformation:
    """Make the optimizer of a network, of `config.optimizer.NETWORK`."""
    return {ADAMW: adamw, MUON: muon}[name](**options)


def adamw(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    **others: Any,
) -> optax.GradientTransformation:
    """Make AdamW; `others` are options of `_complete`."""
    return leafwise(_complete(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), learning_rate, **others))


def muon(
    learning_rate: float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    **others: Any,
) -> optax.GradientTransformation:
    """Make Muon (arXiv 2502.16982) for kernels and AdamW for the other parameters.

    Muon orthogonalizes the momentum of each kernel, (inputs, outputs) or (height, width, inputs,
    outputs) as a matrix of all inputs. Its updates are scaled to the size of AdamW's, so that one
    learning rate serves both. Embeddings, position tables, biases and norms are AdamW's.

    Args:
      learning_rate: the highest rate of `schedule`.
      b1, b2, eps: of AdamW.
      others: options of `_complete`.
    """
    transforms = {
        MUON: optax.chain(
            optax.contrib.scale_by_muon(beta=_MOMENTUM, weight_dimension_numbers=_dimensions),
            optax.stateless_with_tree_map(lambda update, _: update * _size_of(update.shape)),
        ),
        ADAMW: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    }
    return _complete(optax.partition(transforms, _label_of_each), learning_rate, **others)


def _complete(moments, learning_rate, *, weight_decay=0.0, max_grad_norm=1.0, **rates):
    """Clipping to a global norm, `moments`, decoupled weight decay, and the rate of `schedule`.

    `rates` are the other options of `schedule`.
    """
    rate = schedule(learning_rate, **rates)
    decay = optax.add_decayed_weights(weight_decay)
    steps = optax.chain(moments, decay, optax.scale_by_learning_rate(rate))
    return optax.chain(clip_by_global_norm(max_grad_norm), steps)


def _label_of_each(params):
    def label(path, leaf):
        return MUON if path[-1].key == "kernel" and leaf.ndim > 1 else ADAMW

    return jax.tree_util.tree_map_with_path(label, params)


def _size_of(shape):
    """The factor that gives an orthogonal matrix the size `_SIZE`."""
    return _SIZE * max(math.prod(shape[:-1]), shape[-1]) ** 0.5


def _dimensions(params):
    """All axes of a kernel but the last are its inputs."""

    def of_kernel(leaf):
        *inputs, outputs = range(leaf.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), (outputs,))

    return jax.tree.map(of_kernel, params)


def schedule(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay: str = "cosine",
    decay_start: int = 0,
    decay_steps: int = 0,
    final_rate: float = 0.0,
) -> float | optax.Schedule:
    """Make the learning rate: a number, or a function of the step.

    It rises linearly over `warmup_steps`. Then it stays constant, or with `decay_steps` > 0 it
    falls from step `decay_start`, or the end of the warm-up if that is later, to `final_rate` at
    step `decay_steps`, both counted from step 0, by a law of `DECAYS`.
    """
    rate = learning_rate
    if warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if decay_steps:
        start = max(decay_start, warmup_steps)
        rise = rate if callable(rate) else optax.constant_schedule(rate)
        fall = DECAYS[decay](learning_rate, final_rate, decay_steps - start)
        rate = optax.join_schedules([rise, fall], [start])
    return rate


def rate_at(step: int, options: Mapping[str, Any]) -> float:
    """The learning rate after `step` steps, of `config.optimizer.NETWORK`."""
    names = ("warmup_steps", "decay", "decay_start", "decay_steps", "final_rate")
    rate = schedule(options["learning_rate"], **{name: options[name] for name in names})
    return float(rate(step)) if callable(rate) else rate


def leafwise(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its update is traced once per shape of a leaf; same state.

    The optimizer's `update` must treat each leaf separately. Only the gradients' global norm
    depends on all leaves, and it is passed in as `norm`.
    """
    one = jax.jit(optax.with_extra_args_support(optimizer).update)

    def update(updates, state, params=None, *, norm=None, **others):
        others["norm"] = global_norm(updates) if norm is None else norm
        leaves, structure = jax.tree.flatten(updates)

        def of_leaves(part):
            return jax.tree.structure(part) == structure

        # Some parts of the state have an entry for each leaf. Others, such as counts, are shared:
        # every leaf receives the same value and returns the same value.
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


def to_saved_form(opt_state: Any, held: Any) -> Any:
    """Convert the template of an optimizer's state to the form that a checkpoint holds.

    The state of a schedule has a count, the state of a constant rate is empty, and the checkpoint
    may hold either.

    Args:
      opt_state: the template.
      held: the checkpoint's metadata of the state, with None for an empty state.
    """
    clip, (moments, decay, rate) = opt_state
    if (held[1][2] is None) == isinstance(rate, optax.EmptyState):
        return opt_state
    saved = optax.EmptyState()
    if held[1][2] is not None:
        saved = optax.ScaleByScheduleState(steps_of(moments))
    return clip, (moments, decay, saved)


def to_template_form(opt_state: Any, template: Any) -> Any:
    """Convert a restored state to the template's form; a schedule takes the moments' count."""
    clip, (moments, decay, rate) = opt_state
    wanted = template[1][2]
    if type(rate) is type(wanted):
        return opt_state
    if isinstance(wanted, optax.ScaleByScheduleState):
        wanted = optax.ScaleByScheduleState(jnp.copy(steps_of(moments)))
    return clip, (moments, decay, wanted)


def steps_of(opt_state: Any) -> jax.Array:
    """The number of steps that an optimizer's state has taken."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def by_leaf(function: Callable[..., jax.Array]) -> Callable:
    """Map a function over the leaves of trees; it is traced once per shape of a leaf."""
    once = jax.jit(function)
    return lambda *trees: jax.tree.map(once, *trees)


def global_norm(tree) -> jax.Array:
    """The global L2 norm of a tree, as `optax.tree.norm`; traced once per shape of a leaf."""
    return jnp.sqrt(sum(jax.tree.leaves(_squared_norms(tree))))


_squared_norms = by_leaf(functools.partial(optax.tree.norm, squared=True))
