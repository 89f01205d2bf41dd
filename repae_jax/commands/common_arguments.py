"""Arguments that several commands take."""

import argparse
import pathlib


def add_config(
    parser: argparse.ArgumentParser,
    what: str = "a Python file with get_config()",
    *,
    required: bool = True,
) -> None:
    """--config FILE[:ARG]; the keys behind it are `cli.main`'s to read."""
    parser.add_argument("--config", required=required, metavar="FILE[:ARG]", help=what)


def add_workdir(parser: argparse.ArgumentParser, what: str) -> None:
    """--workdir, which must be given."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help=what)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """How this process finds the others of its job: see `multihost.start`."""
    group = parser.add_argument_group(
        "several processes",
        "Run the same command on every host (one process a host, or one a GPU).",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the job's other processes, as the TPU pod, GKE, Slurm or Open MPI tells",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, elsewhere")
    group.add_argument("--process-count", type=int, metavar="N", help="with --coordinator")
    group.add_argument("--process-index", type=int, metavar="I", help="of this one, from 0")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
