"""The `pretrain-text-encoder` command."""

from __future__ import annotations

import argparse
import pathlib

from repae_jax.commands.options import CONFIG_HELP, add_config, add_quiet, read_configuration
from repae_jax.errors import UserError

SUMMARY = "train the small text encoder of a configuration on its own captions"
EPILOG = f"""\
{CONFIG_HELP}
For captions of a small world, such as configs/described.py. Writes model.safetensors and
tokenizer.json into the folder that config.text_encoder.weights names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    parser.add_argument("--force", action="store_true", help="replace existing files")
    add_quiet(parser)


def run(options: argparse.Namespace) -> int:
    """Train the text encoder and save it; returns 0.

    Raises:
      UserError: the configuration is wrong, or the folder exists.
    """
    config = read_configuration(options)
    from repae_jax.config.validate import validate
    from repae_jax.data.tokens import FILE
    from repae_jax.interop.text_encoder import WEIGHTS
    from repae_jax.training.language_model import check_pretraining, pretrain_text_encoder
    from repae_jax.utils.lock import writing_in

    validate(config)
    check_pretraining(config)
    folder = pathlib.Path(config.text_encoder.weights)
    for file in (folder / WEIGHTS, folder / FILE):
        if file.exists() and not options.force:
            raise UserError(f"{file} exists already: use it, or add --force to replace it")
    with writing_in(folder):
        perplexity = pretrain_text_encoder(config, progress=not options.quiet)
    print(f"text encoder: {folder}  (perplexity of held-out captions {perplexity:.2f} a token)")
    return 0
