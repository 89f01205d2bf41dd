"""The state dict of PyTorch's AdamW, to and from the moments of our optimizer.

PyTorch numbers the state by the order of a model's parameters:

    {"state": {0: {"step", "exp_avg", "exp_avg_sq"}, ...}, "param_groups": [{"lr", ..., "params"}]}

A parameter that never had a gradient has no entry under "state".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from repae_jax.errors import UserError
from repae_jax.utils.finite import finite_in_float32
from repae_jax.utils.schema import short_repr

MOMENTS = ("exp_avg", "exp_avg_sq")

# further options of torch.optim.AdamW, with its defaults
_UNUSED_OPTIONS = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}


class AdamState(NamedTuple):
    """The moments under the names of PyTorch's parameters, and the number of steps taken."""

    count: int
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]


def read_adamw(
    state_dict: Mapping[str, Any],
    slots: Sequence[str | None],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
) -> AdamState:
    """The moments of the parameters in `shapes`.

    Args:
      state_dict: the state dict of torch.optim.AdamW.
      slots: the name of each numbered parameter; None for a parameter to ignore.
      shapes: the trained parameters and their shapes.
      source: the name of the state in an error, such as "0400000.pt: opt".

    Raises:
      UserError: the number of slots differs; a moment is missing, misshapen or not finite; or
        parameters have taken different numbers of steps.
    """
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(state, Mapping) or not groups:
        raise UserError(f"{source}: not the state of a PyTorch optimizer")
    numbers = [number for group in groups for number in group["params"]]
    if len(numbers) != len(slots):
        raise UserError(f"{source}: has {len(numbers)} parameters, the model {len(slots)}")
    moments: dict[str, dict[str, np.ndarray]] = {name: {} for name in MOMENTS}
    counts = {}
    for number, name in zip(numbers, slots, strict=True):
        if name not in shapes:
            continue
        entry = state.get(number)
        if entry is None and state:
            raise UserError(f"{source}: slot {number} ({name}) is missing")
        for kind in MOMENTS:
            moments[kind][name] = _moment(entry, kind, shapes[name], f"{source}: {name}")
        counts[name] = 0 if entry is None else _step(entry, f"{source}: {name}")
    if len(set(counts.values())) > 1:
        low, high = min(counts, key=counts.get), max(counts, key=counts.get)
        raise UserError(
            f"{source}: {low} has taken {counts[low]} steps and {high} {counts[high]}: all "
            "parameters must have taken the same number"
        )
    return AdamState(next(iter(counts.values()), 0), *moments.values())


def steps_taken(state_dict: Mapping[str, Any]) -> int:
    """The largest number of steps of any parameter in an optimizer's state; 0 for an empty one."""
    entries = state_dict.get("state", {}).values()
    return max((_step(entry, "opt") for entry in entries), default=0)


def write_adamw(
    adam: AdamState,
    slots: Sequence[str | None],
    groups: Sequence[Mapping[str, Any]],
    carried: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """The inverse of `read_adamw`.

    Args:
      adam: the moments and the number of steps.
      slots: the name of each numbered parameter.
      groups: "param_groups" of the state dict; see `parameter_groups`.
      carried: number -> entry of the slots that do not train here, written unchanged.
    """
    state = {}
    step = np.asarray(adam.count, np.float32)
    for number, name in enumerate(slots):
        if number in carried:
            state[number] = dict(carried[number])
        elif name in adam.exp_avg:
            moments = {kind: getattr(adam, kind)[name] for kind in MOMENTS}
            state[number] = {"step": step.copy(), **moments}
    return {"state": state, "param_groups": [dict(group) for group in groups]}


def parameter_groups(
    count: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    undecayed: int = 0,
) -> list[dict[str, Any]]:
    """ "param_groups" as torch.optim.AdamW itself writes them, for `count` parameters.

    With `undecayed`, the first parameters are a group of their own without weight decay.
    """
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options |= _UNUSED_OPTIONS
    rest = {**options, "params": list(range(undecayed, count))}
    if not undecayed:
        return [rest]
    return [{**options, "weight_decay": 0.0, "params": list(range(undecayed))}, rest]


def _step(entry, what):
    step = np.asarray(entry.get("step"))
    if step.shape or step.dtype.kind not in "iuf" or not 0 <= step < 2**31:
        raise UserError(
            f"{what} has taken {short_repr(entry.get('step'))} steps: give a whole number"
        )
    return int(step)


def _moment(entry, kind, shape, what):
    if entry is None:  # the checkpoint was saved before the first step
        return np.zeros(shape, np.float32)
    if kind not in entry:
        raise UserError(f"{what} has no {kind}")
    array = entry[kind]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fV":
        raise UserError(f"{what} has {short_repr(array)} for its {kind}, not a tensor of floats")
    if array.shape != tuple(shape):
        raise UserError(f"{what} has {kind} of shape {array.shape}, the model needs {shape}")
    if not finite_in_float32(array):
        raise UserError(f"{what} has {kind} with values that are not finite in float32")
    return array
