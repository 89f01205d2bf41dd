"""The run that a command samples from, and the sampler that its options select."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from repae_jax.commands.options import SAMPLER_OPTIONS, check_seed
from repae_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from repae_jax.sampling.sampler import Sampler


def sampled_config(workdir: pathlib.Path) -> ConfigDict:
    """Load the configuration of a run, and check that the run can be sampled from.

    Raises:
      UserError: there is no run, or it has no backbone.
    """
    from repae_jax.runs.workdir import CONFIG, load_config

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
    config = load_config(workdir)
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
    config: ConfigDict, options: argparse.Namespace, of_prompts: Sequence[str], labels: str | None
) -> None:
    """Raise UserError for prompts given to a run of classes, or classes given to one of captions.

    Args:
      config: the run's configuration.
      options: the command's options.
      of_prompts: the names of options for a run of captions.
      labels: --labels if the user gave it.
    """
    if of_captions(config):
        if labels is not None:
            raise UserError(
                f"--labels is {labels!r}, but {options.workdir} is a run of captions: give prompts"
            )
        return
    for name in of_prompts:
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for a run of captions, but {options.workdir} is "
                "one of classes: give --labels"
            )


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
