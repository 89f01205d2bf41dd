"""The command line: `python -m repae_jax <command>`, or `repae <command>`.

The module `commands/NAME.py` (with _ for -) defines the command NAME: SUMMARY, EPILOG,
`add_arguments(parser)` and `run(options)`, which returns the exit status. The modules are quick to
import: `run` imports JAX and other large packages when it needs them.
"""

import argparse
import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from absl import logging as absl_logging

from repae_jax import __version__
from repae_jax.config.overrides import PREFIX
from repae_jax.errors import TRACEBACK, describe_error
from repae_jax.utils import process_env, signals, streams
from repae_jax.utils.compilation_cache import use_compilation_cache

DESCRIPTION = """\
REPA-E in JAX: train a VAE and a latent diffusion transformer together, and use them.

The shortest way to see it work, on handwritten digits and two CPU cores:

  python -m repae_jax pretrain-teacher --config digits
  python -m repae_jax train  --config digits --workdir runs/digits
  python -m repae_jax sample --workdir runs/digits --labels 3,1,4,1,5
  python -m repae_jax report --workdir runs/digits
"""
COMMANDS = (
    "train",
    "pretrain-teacher",
    "pretrain-text-encoder",
    "sample",
    "generate",
    "demo",
    "report",
    "evaluate",
    "evaluate-vae",
    "evaluate-latents",
    "evaluate-alignment",
    "evaluate-described",
    "study",
    "prepare",
    "encode",
    "compile",
    "convert",
    "inspect",
    "configs",
)
# Commands whose printed output is their result.
PRINTING = ("inspect", "configs", "compile", "evaluate", "evaluate-vae", "evaluate-described")


class Parser(argparse.ArgumentParser):
    """A parser that reads every number as a value, including -1e30, which looks like an option."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(
            r"-(\d[\d_]*\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|inf(inity)?|nan)$", re.IGNORECASE
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 2: bad input, explained in one line. 70: an unforeseen error, in one line. 75: a signal
    ended the training before its last step, after saving; or SIGTERM or SIGHUP ended another
    command; or another process of the job is gone. The same command resumes after a 75. 130: Ctrl-C
    ended a command other than training.
    """
    if getattr(sys.stdout, "errors", "") == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be invalid UTF-8
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return signals.until_signal(lambda: _main(arguments))


def _main(arguments):
    try:
        options = _parse(arguments)
    except SystemExit as end:  # --help raises it, for example
        sys.exit(streams.report_lost_output(end.code or 0, needed=True))
    if options.command is None:
        return streams.report_lost_output(0, needed=True)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax logs at length
    try:
        process_env.prepare()
        use_compilation_cache()
        status = _module(options.command).run(options)
    except Exception as error:
        signals.check()  # a library may have turned a signal into this error
        return _ended_by(error)
    return streams.report_lost_output(status, needed=options.command in PRINTING)


def make_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the commands `names`; `options.command` is the requested one, or None.

    Imports the commands' modules.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m repae_jax", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"repae_jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", dest="command")
    for name in names:
        command = _module(name)
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.SUMMARY,
                description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
                epilog=command.EPILOG,
                formatter_class=raw,
                allow_abbrev=False,
            )
        )
    return parser


def _module(name):
    return importlib.import_module(f"repae_jax.commands.{name.replace('-', '_')}")


def _parse(arguments):
    """Parse the command line; `options.overrides` lists its `--config.key=value` words."""
    first = arguments[:1]
    parser = make_parser(first if first and first[0] in COMMANDS else COMMANDS)
    if first and not first[0].startswith("-") and first[0] not in COMMANDS:
        close = difflib.get_close_matches(first[0], COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else "--help lists the commands"
        parser.error(f"there is no command {first[0]!r}; {meant}")
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return options
    wrong = [word for word in rest if not word.startswith(PREFIX) or not hasattr(options, "config")]
    if wrong:
        parser.error(f"unrecognized argument: {wrong[0]}")
    options.overrides = rest
    return options


def _ended_by(error):
    """Print an error in one line; returns the exit status."""
    if os.environ.get(TRACEBACK, "0") != "0":
        traceback.print_exception(error)
    status, line = describe_error(error)
    print(line, file=sys.stderr, flush=True)
    if _is_one_of_several():
        sys.stdout.flush()
        os._exit(status)  # an orderly exit waits for the other processes, which may wait for this
    return status


def _is_one_of_several():
    """Whether this process belongs to a job of several processes."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1
