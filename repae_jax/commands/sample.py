"""The `sample` command: a picture of a few images; and what `generate` shares with it."""

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.commands.sampling_arguments import SAMPLER_OPTIONS
from repae_jax.errors import UserError, batch_size_advised
from repae_jax.runs.open_run import make_sampler, open_run, sampling_weights
from repae_jax.runs.workdir import CONFIG, load_config
from repae_jax.sampling.class_labels import NONE, class_numbers, unconditional
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.sampling.samplers import Sampler, check_null_class
from repae_jax.utils.figures import image_grid, save_png
from repae_jax.utils.schema import Batch, checked, read_json


@batch_size_advised()
def sample_command(options: argparse.Namespace) -> int:
    """Generate images from the newest checkpoint of `options.workdir`; returns 0."""
    config = sampled_config(options.workdir)
    sampler = chosen_sampler(config, options)
    labels, columns = _labels(options.labels, config.data.num_classes)
    checked(options.batch_size, Batch, source="--batch-size")
    run = open_run(options.workdir)
    generate = make_generate(run.models.backbone, run.models.tokenizer, sampler)
    images = generate_all(
        generate,
        sampling_weights(run.state),
        jax.random.key(options.seed),
        labels,
        batch_size=min(options.batch_size, len(labels)),
        progress=not options.quiet,
    )
    output = options.output or options.workdir / "sample.png"
    save_png(output, image_grid(images, columns))
    print(f"samples: {output}")
    return 0


def sampled_config(workdir: pathlib.Path) -> ConfigDict:
    """The configuration of a run that can be sampled from.

    Raises:
      UserError: there is no run, or it has no backbone.
    """
    if workdir.is_file():
        raise UserError(
            f"--workdir {workdir} is a file: sampling needs a work directory; of the original's "
            f"checkpoint `python -m repae_jax convert {workdir} DIRECTORY` makes one"
        )
    if _is_of_diffusers(workdir / CONFIG):
        raise UserError(
            f"--workdir {workdir} holds a VAE for diffusers, which makes no images of its own: "
            "give a run's work directory"
        )
    config = load_config(workdir)
    if "backbone" not in config.train:
        raise UserError(f"{workdir} trained a VAE alone: there is nothing to sample from")
    return config


def _is_of_diffusers(path):
    try:
        return "_class_name" in read_json(path, dict[str, Any])
    except UserError:
        return False


def chosen_sampler(config: ConfigDict, options: argparse.Namespace) -> Sampler:
    """The configuration's sampler, with what the command line changes; of no class, unguided.

    Raises:
      UserError: it is no sampler, the seed is none, or the model lacks the null class.
    """
    check_seed(options.seed)
    changes = {name: getattr(options, name) for name in SAMPLER_OPTIONS}
    if options.labels == NONE:
        _check_unconditional(config, changes["guidance_scale"])
        changes["guidance_scale"] = 1.0
    sampler = make_sampler(config, **changes)
    check_null_class(sampler, config.condition.drop)
    return sampler


def _check_unconditional(config, guidance_scale):
    if config.condition.drop == 0:
        raise UserError(
            f"--labels {NONE} asks for the null class, but this run was trained with "
            "config.condition.drop 0 and has none: give classes"
        )
    if guidance_scale not in (None, 0.0, 1.0):
        raise UserError(
            f"--guidance-scale is {guidance_scale}, but --labels {NONE} leaves no class to guide "
            "towards: leave one of them out"
        )


def check_seed(seed: int) -> None:
    """Raise UserError unless --seed is one that the random keys tell from all others."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}: give 0 to {2**32 - 1}")


def _labels(text: str | None, num_classes: int) -> tuple[np.ndarray, int]:
    """Labels (N,) int32, and the columns of their grid; default eight a class."""
    if text is None:
        return np.repeat(np.arange(min(10, num_classes), dtype=np.int32), 8), 8
    if text == NONE:
        return unconditional(64), 8
    labels = class_numbers(text, num_classes)
    return labels, min(len(labels), 10)
