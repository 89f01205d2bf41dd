"""How far the two implementations of a `Comparison` are apart, in relative terms."""

import itertools

import numpy as np
from original_comparison import NEVER, Case, Comparison

TINY = 1e-30

_RECIPES = [
    Case(*recipe) for recipe in itertools.product(("linear", "cosine"), ("l1", "l2"), (0.0, 0.1))
]
_STARTS = [
    Case("cosine", "l2", 0.1, discriminator_start=1, distinct_rates=True),
    Case("linear", "l1", 0.0, discriminator_start=NEVER),
    Case("cosine", "l1", 0.1, discriminator_start=NEVER),
]
_FROZEN = [Case("linear", frozen_vae=True), Case("cosine", frozen_vae=True)]
_OTHERS = [Case(stripes=8), Case(backbone="lightningdit"), Case(backbone="dit")]
CASES = _RECIPES + _STARTS + _FROZEN + _OTHERS

# Their log holds the epoch and two constants besides.
UNLOGGED = {"epoch", "discriminator_factor", "d_weight"}

# Parameters are compared by how far they moved, since in three steps they stay near the start.
MOVED = ("params/backbone", "params/tokenizer", "params/discriminator", "ema/params")
VALUES = (
    "moments/backbone",
    "moments/tokenizer",
    "moments/discriminator",
    "ema/latent_norm",
    "batch_stats/latent_norm",
    "batch_stats/discriminator",
    "batch_stats/lecam",
)


def metrics(comparison: Comparison, step: int) -> dict[str, float]:
    """|ours - theirs| / |theirs| of each logged scalar of a step."""
    ours, theirs = comparison.our_metrics[step], comparison.their_metrics[step]
    return {name: abs(ours[name] - b) / max(abs(b), TINY) for name, b in logged(theirs).items()}


def logged(their_metrics: dict[str, float]) -> dict[str, float]:
    """What they log and we should."""
    return {name: value for name, value in their_metrics.items() if name not in UNLOGGED}


def moved(comparison: Comparison, group: str) -> tuple[float, float, str]:
    """(of all parameters together, of the worst tensor, its path): |a - b| / |b| of the changes.

    |.| is the L2 norm. Adam's first steps are nearly the gradient's signs, and rounding decides
    the sign of what is near zero: a few elements of a tensor may go the other way.
    """
    names = paths(comparison, group)
    if not names:
        return 0.0, 0.0, ""
    ours, theirs, before = comparison.ours, comparison.theirs, comparison.before
    errors = np.array([np.linalg.norm(ours[name] - theirs[name]) for name in names])
    lengths = np.array([np.linalg.norm(theirs[name] - before[name]) for name in names])
    relative = errors / np.maximum(lengths, TINY)
    total = np.linalg.norm(errors) / max(np.linalg.norm(lengths), TINY)
    worst = np.argmax(relative)  # a NaN counts as the largest
    return float(total), float(relative[worst]), names[worst]


def values(comparison: Comparison, group: str) -> tuple[float, str]:
    """(of the worst tensor, its path): max |a - b| / max |b|."""
    names = paths(comparison, group)
    if not names:
        return 0.0, ""
    ours, theirs = comparison.ours, comparison.theirs
    errors = np.array([np.abs(ours[name] - theirs[name]).max() for name in names])
    sizes = np.array([np.abs(theirs[name]).max() for name in names])
    relative = errors / np.maximum(sizes, TINY)
    worst = np.argmax(relative)
    return float(relative[worst]), names[worst]


def paths(comparison: Comparison, group: str) -> list[str]:
    """The paths of a group's arrays that have a gradient."""
    # A key bias shifts all logits of a query alike, so no output depends on it, and its gradient
    # is rounding and nothing else. (The SiT's are a third of a tensor each.)
    return [
        name
        for name in comparison.theirs
        if name.startswith(f"{group}/") and not name.endswith("/k/bias")
    ]
