"""Keeps inputs of gradient tests away from kinks, by a margin measured on the machine at hand.

The gradient of a ReLU, a LeakyReLU, a maximum or an absolute value jumps at its kink. Where an
input lies within rounding of one, two correct implementations may take different sides of it, and
which side depends on the processor. Here the same values are computed in float32 and in float64:
how far float32 is off measures the rounding, and a safe input keeps a multiple of it.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

# A distance of a multiple of the largest rounding error in its layer; either of two
# implementations may be off by one such error.
SAFETY = 2.0
CANDIDATES = 100  # after which something else is wrong

Input = TypeVar("Input")
# The signed distances from kinks of one input, layer by layer, computed in a type.
Distances = Callable[[torch.dtype], list[torch.Tensor]]


@contextlib.contextmanager
def recorded(*modules: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the distances of every ReLU, LeakyReLU and MaxPool2d below `modules`.

    A pooling's distance is the gap between the two largest values of a window; a window of zeros
    behind a ReLU, whose gradient is zero whichever is taken, is infinitely far.
    """
    found: list[torch.Tensor] = []

    def keep(module, inputs):
        x = inputs[0].detach().clone()  # the module may work in place
        found.append(_gaps(x, module) if isinstance(module, nn.MaxPool2d) else x)

    kinked = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)
    parts = [part for module in modules for part in module.modules() if isinstance(part, kinked)]
    handles = [part.register_forward_pre_hook(keep) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def margin(distances: Distances) -> float:
    """The smallest distance from a kink, in units of its layer's largest rounding error."""
    with torch.no_grad():
        exact, rounded = distances(torch.float64), distances(torch.float32)
    assert len(exact) == len(rounded) > 0
    return min(map(_layer_margin, exact, rounded))


def first_safe(candidates: Iterable[Input], distances_of: Callable[[Input], Distances]) -> Input:
    """The first of `candidates` whose margin is at least `SAFETY`."""
    tried = []
    for candidate, _ in zip(candidates, range(CANDIDATES), strict=False):
        tried.append(margin(distances_of(candidate)))
        if tried[-1] >= SAFETY:
            return candidate
    raise AssertionError(f"no safe input among {len(tried)}: the best margin is {max(tried):.2g}")


def _gaps(x, pool):
    assert pool.kernel_size == pool.stride == 2
    assert pool.padding == 0
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    first, second = windows.topk(2).values.unbind(-1)
    return torch.where(first == 0, math.inf, first - second)


def _layer_margin(exact, rounded):
    finite = exact.isfinite()
    if not torch.equal(finite, rounded.isfinite()):
        return 0.0
    if not finite.any():
        return math.inf
    exact, rounded = exact[finite], rounded[finite].double()
    error = (exact - rounded).abs().max().item()
    return exact.abs().min().item() / error if error else math.inf
