"""The `configs` command."""

import argparse
import sys

SUMMARY = "list the packaged configurations, or print one"
EPILOG = """\
A packaged configuration is named in place of a file: --config digits, --config digits:repa,
and study study_digits. To change more than a few keys, start from a copy:

  configs digits > mine.py
  train --config mine.py --workdir runs/mine"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the file of this one")


def run(options: argparse.Namespace) -> int:
    """Print names and titles of all packaged configurations, or the text of one; returns 0.

    Raises:
      UserError: no packaged configuration has this name.
    """
    from repae_jax.config.packaged import find_file, packaged, title

    if options.name:
        sys.stdout.write(find_file(options.name).read_text(encoding="utf-8"))
        return 0
    files = packaged()
    width = max(map(len, files))
    for name, path in files.items():
        print(f"{name:{width}}  {title(path)}")
    return 0
