"""Options that several commands share, and their evaluation."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from repae_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DEFAULT = "(default: %(default)s)"
CONFIG_HELP = """\
--config takes the name of a packaged configuration (`configs` lists them) or a Python file.
Any key of the configuration can be set after it, for example
  --config digits --config.seed=1 --config.backbone.depth=6
and a configuration may take an argument after a colon, such as its recipe:
  --config digits:repa --config.tokenizer.weights=runs/digits
All keys and their defaults are in repae_jax/config/defaults.py.
"""
LABELS_HELP = (
    "balanced (default): all classes in turn; random: chosen by the seed; none: unconditional, by "
    "the null class; or classes such as 3,1,4, or a text file of them, repeated up to the count"
)
# The keys of config.sampling that `add_sampler` adds.
SAMPLER_OPTIONS = (
    "method", "steps", "guidance_scale", "guidance_low", "guidance_high", "guidance_channels",
    "class_token_guidance",
    "guidance_rule", "shift", "last_time", "smallest_time",
)  # fmt: skip


def add_config(
    parser: argparse.ArgumentParser,
    what: str = "a packaged configuration, or a Python file with get_config()",
    *,
    required: bool = True,
) -> None:
    """Add --config NAME[:ARG]; `cli.main` puts the keys after it into `options.overrides`."""
    parser.add_argument("--config", required=required, metavar="NAME[:ARG]", help=what)


def read_configuration(
    options: argparse.Namespace, stored: Callable[[], ConfigDict] | None = None
) -> ConfigDict:
    """Read the configuration of --config, or else `stored()`, and apply the keys set after it.

    Raises:
      UserError: there is no such configuration or file, it has an error, a key is unknown, or a
        value has the wrong type.
    """
    from repae_jax.config.overrides import apply_overrides, read_config

    if stored is not None and not options.config:
        return apply_overrides(stored(), options.overrides)
    return read_config(options.config, options.overrides)


def add_workdir(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the required option --workdir with the help `what`."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help=what)


def add_step(parser: argparse._ActionsContainer) -> None:
    """Add --step, which selects a checkpoint of a run."""
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="use the checkpoint of training step N (default: the newest)",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a process finds the others of its job, for `join_processes`."""
    group = parser.add_argument_group(
        "several processes",
        "Run the same command on every host (one process per host, or one per GPU).",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the job's other processes, which the TPU pod, GKE, Slurm or Open MPI identifies",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--process-count", type=int, metavar="N", help="with --coordinator")
    group.add_argument(
        "--process-index", type=int, metavar="I", help="number of this process, from 0"
    )


def join_processes(options: argparse.Namespace) -> None:
    """Join the other processes of the job, if the options of `add_processes` request it.

    Raises:
      UserError: the options are wrong, or the platform identifies no other processes.
    """
    given = (options.coordinator, options.process_count, options.process_index)
    if options.distributed or any(value is not None for value in given):
        from repae_jax.parallel.multihost import start

        start(*given)


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", action="store_true", help="hide progress bars")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add --seed, and options for the sampler's keys of the configuration."""
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="image i depends on (seed, i) alone, an image of a prompt on (seed, prompt, number) "
        + DEFAULT,
    )
    parser.add_argument("--method", help="euler, heun or euler-maruyama (default: the config's)")
    parser.add_argument("--steps", type=int, help="integration steps (default: the config's)")
    parser.add_argument("--guidance-scale", type=float, help="0: unconditional, 1: no guidance")
    parser.add_argument("--guidance-low", type=float, help="lowest time t with guidance, 0 to 1")
    parser.add_argument("--guidance-high", type=float, help="highest t with guidance; 1 is noise")
    parser.add_argument(
        "--guidance-channels", type=int, help="guide the first N channels alone; 0: all"
    )
    parser.add_argument(
        "--class-token-guidance",
        type=float,
        help="the scale for a class token that the model denoises; 0: that of the latents",
    )
    parser.add_argument(
        "--guidance-rule", help="step or evaluation: what the interval decides about"
    )
    parser.add_argument(
        "--shift", type=float, help="factor of the times' odds t / (1 - t): above 1, more at noise"
    )
    parser.add_argument(
        "--last-time", type=float, help="time before the shift at which an ODE ends (0: the data)"
    )
    parser.add_argument(
        "--smallest-time",
        type=float,
        help="time before the shift of an ODE's last evaluation, before a step to 0 (0: none)",
    )


def add_negative_prompt(parser: argparse.ArgumentParser) -> None:
    """Add --negative-prompt."""
    parser.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="guide away from this prompt in place of the empty one (a run with captions)",
    )


def check_seed(seed: int) -> None:
    """Raise UserError unless --seed fits the 32 bits that random keys use."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}: give 0 to {2**32 - 1}")
