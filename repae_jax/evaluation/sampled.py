"""Images that a run makes while they are measured: nothing goes through a disk."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from repae_jax.evaluation.image_sets import ImageSet
from repae_jax.parallel.mesh import put_key
from repae_jax.sampling.command import chosen_sampler, sampled_config
from repae_jax.sampling.generate import Generate, generate_batches, make_generate
from repae_jax.sampling.labels import choose_labels
from repae_jax.schema import Count, checked
from repae_jax.training.checkpoints import FOLDER
from repae_jax.training.run import open_run, sampling_weights
from repae_jax.training.workdir import CONFIG

COUNT = 50_000  # images, unless --count tells


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a path is a work directory, not a folder of images."""
    path = pathlib.Path(path)
    return (path / CONFIG).is_file() and (path / FOLDER).is_dir()


def open_sampled(options: argparse.Namespace, mesh: Mesh) -> ImageSet:
    """The images that `generate` would make with these options of the run in `options.samples`.

    Raises:
      UserError: bad options, or no run that can be sampled from.
    """
    workdir = pathlib.Path(options.samples)
    config = sampled_config(workdir)
    sampler = chosen_sampler(config, options)
    count = COUNT if options.count is None else checked(options.count, Count, source="--count")
    labels, _ = choose_labels(options.labels, count, config.data.num_classes, options.seed)
    run = open_run(workdir, mesh)
    name = f"{workdir}, step {int(run.state.step)}"
    generate = make_generate(run.models.sit, run.models.vae, sampler, mesh=mesh)
    key, weights = put_key(mesh, options.seed), sampling_weights(run.state)
    return sampled(name, generate, weights, key, labels, config.data.resolution, mesh)


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
