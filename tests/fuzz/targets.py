"""All targets."""

from fuzz import (
    data_sets,
    metric_weights,
    networks,
    original_checkpoints,
    pipelines,
    runs_and_studies,
    samples,
    vaes,
)
from fuzz.target import Target

_FILES = (
    vaes, networks, metric_weights, original_checkpoints, data_sets, samples, runs_and_studies,
    pipelines,
)  # fmt: skip
TARGETS: dict[str, Target] = {target.name: target for file in _FILES for target in file.TARGETS}


def by_name(name: str) -> Target:
    """One of them."""
    return TARGETS[name]
