"""A network's loss as a sum of weighted terms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from repae_jax.objectives.objective import Objective


class Term(NamedTuple):
    """One term of a network's loss.

    Attributes:
      metric: its name in the log, one of `METRICS`.
      value: (the arrays that the network's terms share) -> scalar, or None if the run lacks the
        term.
      weight: the field of `Objective` that is the term's weight; "" for a weight of 1.
      logs_weight: whether the log has weight * value instead of the value, as the original's log.
      optional: with a weight of 0, neither the term nor its metric is computed.
    """

    metric: str
    value: Callable[[Any], jax.Array | None]
    weight: str = ""
    logs_weight: bool = False
    optional: bool = False


def weighted_sum(
    terms: Sequence[Term], objective: Objective, shared: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of weight * value over the terms, scalar, and {metric: value} of the terms.

    Args:
      terms: the terms, summed in this order.
      objective: the weights.
      shared: the argument of every term's `value`.
    """
    total, metrics = 0.0, {}
    for term in terms:
        weight = getattr(objective, term.weight) if term.weight else 1.0
        if term.optional and not weight:
            continue
        if (value := term.value(shared)) is None:
            continue
        weighted = weight * value if term.weight else value
        total += weighted
        metrics[term.metric] = weighted if term.logs_weight else value
    return total, metrics
