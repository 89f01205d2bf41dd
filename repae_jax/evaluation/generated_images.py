"""A run's generated images as a set to measure, held in memory batch by batch."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from repae_jax.evaluation.image_sets import ImageSet
from repae_jax.sampling.generate import Generate, Inputs, generate_batches, number_of


def generated_image_set(
    name: str,
    generate: Generate,
    weights: Mapping[str, Any],
    key: jax.Array,
    inputs: Inputs,
    resolution: int,
    mesh: Mesh,
) -> ImageSet:
    """Make an image set that generates its images each time it is read.

    Args:
      name: the set's name.
      generate, weights, key, mesh: see `generate_batches`.
      inputs: the inputs (N, ...) of the images.
      resolution: pixels along a side.
    """

    def batches(size):
        starts = range(0, number_of(inputs), size)
        made = generate_batches(
            generate, weights, key, inputs, starts, batch_size=size, mesh=mesh
        )  # fmt: skip
        return (images for _, images in made)

    return ImageSet(name, number_of(inputs), resolution, batches)
