"""The `train` command."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import (
    CONFIG_HELP,
    add_config,
    add_processes,
    add_quiet,
    add_workdir,
    join_processes,
    read_configuration,
)
from repae_jax.errors import advise_on_bad_images

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SUMMARY = "train a configuration in a work directory, or resume the run there"
EPILOG = f"""\
{CONFIG_HELP}
The work directory holds the complete run: config.json, checkpoints/, tensorboard/, samples/.
Ctrl-C or SIGTERM saves and exits with status 75; the same command resumes from there.
Learning rates, their schedules and the dtype may change."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(
        parser,
        "a packaged configuration, or a Python file with get_config() (default: the configuration "
        "in the work directory)",
        required=False,
    )
    add_workdir(parser, "folder of the run; created if missing, else the run in it continues")
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="continue from the checkpoint of step N, or from the beginning (0); later checkpoints "
        "are set aside in the work directory",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also trace five steps for XProf, into tensorboard/; see docs/performance.md",
    )
    add_processes(parser)
    add_quiet(parser)


@advise_on_bad_images(
    "or pass over such images with --config.data.on_bad_image=skip (without the file the data are "
    "others: a run that has begun refuses them, and names the --config.data.accept=... for them)"
)
def run(options: argparse.Namespace) -> int:
    """Train until the last step or a signal; returns 0, or 75 after a signal.

    Raises:
      UserError: see `training.loop.train`.
      LostProcess: another process of the job is gone.
    """
    config = read_configuration(options, lambda: _stored_configuration(options.workdir))
    from repae_jax.training.default_hooks import default_hooks
    from repae_jax.training.loop import train

    join_processes(options)
    status = train(
        config,
        options.workdir,
        make_hooks=default_hooks,
        progress=not options.quiet,
        profile=options.profile,
        from_step=options.from_step,
    )
    print(f"run: {options.workdir}  (tensorboard --logdir {options.workdir})")
    return status


def _stored_configuration(workdir: pathlib.Path) -> ConfigDict:
    from repae_jax.runs.workdir import load_config

    return load_config(workdir)
