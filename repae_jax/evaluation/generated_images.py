"""Images that a run makes while they are measured: nothing goes through a disk."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from repae_jax.evaluation.image_sets import ImageSet
from repae_jax.sampling.generate import Generate, generate_batches


def sampled(
    name: str,
    generate: Generate,
    weights: Mapping[str, Any],
    key: jax.Array,
    labels: np.ndarray,
    resolution: int,
    mesh: Mesh,
) -> ImageSet:
    """Images of all `labels` (N,) as a set; they are made anew whenever they are read.

    Args:
      name: of the set.
      generate, weights, key, mesh: see `generate_batches`.
      labels: the images' classes.
      resolution: pixels along a side.
    """

    def batches(size):
        starts = range(0, len(labels), size)
        made = generate_batches(
            generate, weights, key, labels, starts, batch_size=size, mesh=mesh
        )  # fmt: skip
        return (images for _, images in made)

    return ImageSet(name, len(labels), resolution, batches)
