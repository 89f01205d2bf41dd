"""The `inspect` command."""

import argparse

from repae_jax.interop.formats import FORMATS

_KNOWN = "\n".join(f"  {what}" for what in FORMATS.values())
SUMMARY = "describe the content of a file or folder"
EPILOG = f"""\
The format is detected from the content; the name does not matter. Known formats:
{_KNOWN}

Nothing in a file is executed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("path", metavar="PATH", help="a file, a folder, or hf://owner/name")


def run(options: argparse.Namespace) -> int:
    """Print a description of the file or folder; returns 0.

    Raises:
      UserError: it does not exist, is damaged, or has an unknown format.
    """
    from repae_jax.runs.inspection import describe

    print(describe(options.path))
    return 0
