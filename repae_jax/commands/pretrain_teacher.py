"""The `pretrain-teacher` command."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import CONFIG_HELP, add_config, add_quiet, read_configuration
from repae_jax.errors import UserError, advise_on_bad_images

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SUMMARY = "train the small teacher of a configuration on its own images"
EPILOG = f"""\
{CONFIG_HELP}
For images unlike those that DINOv2 was trained on. Writes the file that
config.teachers.<name>.weights names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    parser.add_argument("--teacher", help="its name in config.teachers, if there are several")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_quiet(parser)


@advise_on_bad_images("or pass over such images with --config.data.on_bad_image=skip")
def run(options: argparse.Namespace) -> int:
    """Train the teacher and save it; returns 0.

    Raises:
      UserError: the configuration or the teacher's entry are wrong, or the file exists.
    """
    config = read_configuration(options)
    name = _chosen_teacher(config, options.teacher)
    from repae_jax.config.validate import validate
    from repae_jax.training.teacher import check_pretraining, pretrain_teacher
    from repae_jax.utils.lock import writing

    validate(config)
    check_pretraining(config, name)
    path = pathlib.Path(config.teachers[name].weights)
    if path.exists() and not options.force:
        raise UserError(f"{path} exists already: use it, or add --force to replace it")
    with writing(path):
        accuracy = pretrain_teacher(config, name, progress=not options.quiet)
    print(f"teacher: {path}  (held-out accuracy {100 * accuracy:.1f} %)")
    return 0


def _chosen_teacher(config: ConfigDict, asked: str | None) -> str:
    """The name in --teacher, or else the only teacher's name."""
    names = list(config.teachers)
    name = asked or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise UserError(f"--teacher is {name!r}: config.teachers has {', '.join(names) or 'none'}")
    return name
