"""The run that a command samples from, and the sampler that its options select."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import SAMPLER_OPTIONS, check_seed
from repae_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from repae_jax.evaluation.image_sets import ImageSet
    from repae_jax.sampling.sampler import Sampler

IMAGES = 50_000  # of a run that is measured, unless --count is given


def sampled_config(workdir: pathlib.Path) -> ConfigDict:
    """Load the configuration of a run, and check that the run can be sampled from.

    Raises:
      UserError: there is no run, or it has no backbone.
    """
    from repae_jax.runs.workdir import CONFIG, opened_config

    if workdir.is_file():
        raise UserError(
            f"--workdir {workdir} is a file: sampling needs a work directory; `python -m repae_jax "
            f"convert {workdir} DIRECTORY` makes one from a checkpoint of the original"
        )
    if _is_of_diffusers(workdir / CONFIG):
        raise UserError(
            f"--workdir {workdir} holds a VAE for diffusers, which makes no images of its own: "
            "give a run's work directory"
        )
    config = opened_config(workdir)
    if "backbone" not in config.train:
        raise UserError(f"{workdir} trained a VAE alone: there is nothing to sample from")
    return config


def _is_of_diffusers(path):
    from repae_jax.utils.schema import read_json

    try:
        return "_class_name" in read_json(path, dict[str, Any])
    except UserError:
        return False


def chosen_sampler(config: ConfigDict, options: argparse.Namespace) -> Sampler:
    """Make the configuration's sampler with the changes of the command line.

    Unconditional sampling (--labels none) turns guidance off.

    Raises:
      UserError: the seed or a change is out of range, or the model lacks the null class.
    """
    from repae_jax.config.modules import build_sampler
    from repae_jax.sampling.class_labels import NONE
    from repae_jax.sampling.sampler import check_null_class

    check_seed(options.seed)
    changes = {name: getattr(options, name) for name in SAMPLER_OPTIONS}
    if options.labels == NONE:
        _check_unconditional(config, options)
        changes["guidance_scale"] = 1.0
    sampler = build_sampler(config, **changes)
    check_null_class(sampler, config.condition.drop)
    return sampler


def of_captions(config: ConfigDict) -> bool:
    """Whether a run's images follow captions."""
    return config.condition.family == "text"


def check_prompt_options(
    config: ConfigDict, options: argparse.Namespace, of_prompts: Sequence[str]
) -> None:
    """Raise UserError for prompts given to a run of classes, or classes given to one of captions.

    Args:
      config: the run's configuration.
      options: the command's options, --labels among them.
      of_prompts: the names of options for a run of captions.
    """
    if of_captions(config):
        if options.labels is not None:
            raise UserError(
                f"--labels is {options.labels!r}, but the run is one of captions: give prompts"
            )
        return
    for name in of_prompts:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for a run of captions, but {options.workdir} is "
                "one of classes: give --labels"
            )


def negative_prompt(given: str | None, sampler: Sampler) -> str:
    """The negative prompt without white space around it; "" for none.

    Raises:
      UserError: the prompt is no text, or nothing guides away from it.
    """
    from repae_jax.sampling.layouts import prompt_text
    from repae_jax.utils.schema import short_repr

    if not given or not given.strip():
        return ""
    if not sampler.guided:
        raise UserError(
            f"--negative-prompt is {short_repr(given)}, but at a guidance scale of 1 it has no "
            "effect: set --guidance-scale above 1"
        )
    return prompt_text(given, "--negative-prompt")


def open_sampled(options: argparse.Namespace, mesh: Mesh) -> ImageSet:
    """The images that `generate` makes from the run in `options.samples` with the same options.

    A run with captions makes images of the captions of its training data.

    Raises:
      UserError: the options are wrong, or there is no run to sample from.
    """
    from repae_jax.data.sources import open_source
    from repae_jax.evaluation.generated_images import generated_image_set
    from repae_jax.parallel.mesh import place_key
    from repae_jax.runs.captions import inputs_in_turn
    from repae_jax.runs.open_run import open_run, sampling_weights
    from repae_jax.sampling.class_labels import BALANCED, choose_labels
    from repae_jax.sampling.generate import make_generate
    from repae_jax.utils.schema import Count, check_schema

    workdir = pathlib.Path(options.samples)
    config = sampled_config(workdir)
    sampler = chosen_sampler(config, options)
    count = (
        IMAGES if options.count is None else check_schema(options.count, Count, source="--count")
    )
    if of_captions(config):
        check_prompt_options(config, options, ())
        inputs = inputs_in_turn(config, open_source(config.data, "train"), count)
    else:
        labels, _ = choose_labels(
            options.labels or BALANCED, count, config.data.num_classes, options.seed
        )
        inputs = {"label": labels}
    trained = open_run(workdir, mesh, step=options.step)
    name = f"{workdir}, step {int(trained.state.step)}"
    generate = make_generate(trained.models, sampler, mesh=mesh)
    key, weights = place_key(mesh, options.seed), sampling_weights(trained.state)
    return generated_image_set(name, generate, weights, key, inputs, config.data.resolution, mesh)


def _check_unconditional(config, options):
    if config.condition.drop == 0:
        raise UserError(
            f"--labels {options.labels} asks for the null class, but this run was trained with "
            "config.condition.drop 0 and has none: give classes"
        )
    if options.guidance_scale not in (None, 0.0, 1.0):
        raise UserError(
            f"--guidance-scale is {options.guidance_scale}, but --labels {options.labels} leaves "
            "no class to guide towards: leave one of them out"
        )
