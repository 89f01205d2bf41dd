"""The `inspect` command."""

import argparse

from repae_jax.interop.formats import FORMATS

_KNOWN = "\n".join(f"  {what}" for what in FORMATS.values())
SUMMARY = "describe what a file or folder holds"
EPILOG = f"""\
Recognised by its content, not by its name:
{_KNOWN}

Nothing in a file is executed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("path", metavar="PATH", help="a file, a folder, or hf://owner/name")


def run(options: argparse.Namespace) -> int:
    """Print what the file or folder holds; returns 0."""
    from repae_jax.runs.inspection import describe

    print(describe(options.path))
    return 0
