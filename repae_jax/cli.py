"""The command line: `python -m repae_jax <command>`, or `repae <command>`."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

from repae_jax import __version__
from repae_jax.errors import UserError

DESCRIPTION = """\
REPA-E in JAX: train a VAE and a latent diffusion transformer together, and use them.

The shortest way to see it work, on handwritten digits and two CPU cores:

  python -m repae_jax pretrain-teacher --config configs/digits.py
  python -m repae_jax train  --config configs/digits.py --workdir runs/digits
  python -m repae_jax sample --workdir runs/digits --labels 3,1,4,1,5
  python -m repae_jax report --workdir runs/digits
"""

CONFIG_HELP = """\
Any key of the configuration can be set behind --config, for example
  --config configs/digits.py --config.run.steps=200 --config.sit.depth=4
and a config file may take an argument behind a colon, such as its recipe:
  --config configs/digits.py:repa --config.vae.weights=runs/digits_vae
All keys and their defaults are in repae_jax/config.py.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 2: bad input, said in one line. 75: a signal ended the training before its last
    step, after saving; run the same command to go on.
    """
    parser = _parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    if rest and not (hasattr(options, "config") and all(_is_override(word) for word in rest)):
        wrong = next(word for word in rest if not _is_override(word))
        parser.error(f"unrecognized argument: {wrong}")
    options.overrides = rest
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax explains itself at length
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m repae_jax", description=DESCRIPTION, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"repae_jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>")

    def command(name, run, summary, epilog=""):
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=raw,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run)
        return sub

    train = command(
        "train",
        _train,
        "train a configuration in a work directory, or go on where it stopped",
        CONFIG_HELP + "\nThe work directory is the whole run: config.json, checkpoints/, "
        "tensorboard/, samples/.\nCtrl-C or SIGTERM saves and exits with status 75; the same "
        "command goes on from there.",
    )
    _add_config(train)
    _add_workdir(train, "where the run lives; made if missing, continued if not")
    _add_quiet(train)

    teacher = command(
        "pretrain-teacher",
        _pretrain_teacher,
        "train the small teacher of a configuration on its own images",
        CONFIG_HELP + "\nFor images that DINOv2 does not know. Writes the file that "
        "config.teachers.<name>.weights names.",
    )
    _add_config(teacher)
    teacher.add_argument("--teacher", help="its name in config.teachers, where there are several")
    teacher.add_argument("--force", action="store_true", help="replace a file that exists")
    _add_quiet(teacher)

    sample = command("sample", _sample, "generate images from a trained run")
    _add_workdir(sample, "a trained run")
    sample.add_argument(
        "--output", type=pathlib.Path, help="PNG grid (default: WORKDIR/sample.png)"
    )
    sample.add_argument(
        "--labels", help="classes, such as 3,1,4 (default: eight of each, up to 10)"
    )
    sample.add_argument("--seed", type=int, default=0, help="image i depends on (seed, i) alone")
    sample.add_argument("--batch-size", type=int, default=64, help="images at a time")
    sample.add_argument("--method", help="euler, heun or euler-maruyama (default: the config's)")
    sample.add_argument("--steps", type=int, help="integration steps (default: the config's)")
    sample.add_argument("--guidance-scale", type=float, help="1 is none (default: the config's)")
    sample.add_argument("--guidance-low", type=float, help="guide only at times t from here,")
    sample.add_argument("--guidance-high", type=float, help="to here; t runs from 1 to 0")
    sample.add_argument("--npz", type=pathlib.Path, help="also write arr_0 (images), labels there")
    _add_quiet(sample)

    report = command("report", _report, "measure a trained run and write its report.html")
    _add_workdir(report, "a trained run")
    report.add_argument("--samples", type=int, default=1000, help="generated images to measure")
    report.add_argument("--seed", type=int, default=0, help="of the generated images")
    _add_quiet(report)
    return parser


def _add_config(parser):
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="a Python file with get_config()"
    )


def _add_workdir(parser, what):
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help=what)


def _add_quiet(parser):
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _is_override(word):
    return word.startswith("--config.")


def _train(options):
    config = read_config(options.config, options.overrides)
    from repae_jax.validation import check_files, validate

    validate(config)
    check_files(config)
    from repae_jax.training.loop import train

    status = train(config, options.workdir, progress=not options.quiet)
    print(f"run: {options.workdir}  (tensorboard --logdir {options.workdir})")
    return status


def _pretrain_teacher(options):
    config = read_config(options.config, options.overrides)
    names = list(config.teachers)
    name = options.teacher or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise UserError(f"--teacher is {name!r}: config.teachers has {', '.join(names) or 'none'}")
    path = pathlib.Path(config.teachers[name].weights)
    if path.exists() and not options.force:
        raise UserError(f"{path} exists already: use it, or add --force to replace it")
    from repae_jax.validation import validate

    validate(config)
    from repae_jax.training.teacher import pretrain_teacher

    accuracy = pretrain_teacher(config, name, progress=not options.quiet)
    print(f"teacher: {path}  (held-out accuracy {100 * accuracy:.1f} %)")
    return 0


def _sample(options):
    from repae_jax.sampling.command import sample_command

    return sample_command(options)


def _report(options):
    from repae_jax.evaluation.run_report import report_command

    return report_command(options)


def read_config(file: str, overrides: Sequence[str]):
    """The configuration of `file[:argument]` with `--config.key=value` overrides.

    Raises:
      UserError: no such file, an error in it, an unknown key, or a value of the wrong type.
    """
    from ml_collections import ConfigDict

    path = file.split(":")[0]
    if not pathlib.Path(path).is_file():
        raise UserError(f"no config file {path}: see the folder configs/")
    config = _parse_config(file, [])
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() gave a {type(config).__name__}, not a ConfigDict")
    _check_keys(config, overrides)
    return _parse_config(file, overrides)


def _parse_config(file, overrides):
    """`file`'s configuration through ml_collections' flags, which know the type of every key."""
    from absl import flags
    from ml_collections import config_flags

    words = ["repae_jax", f"--config={file}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
        return values.config
    except Exception as error:  # the file's own code may raise anything, and absl wraps it
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        for exception in reversed(chain):
            if isinstance(exception, UserError):
                raise exception from None
        if isinstance(error, flags.Error) and overrides:
            raise UserError(_one_line(error)) from error
        raise UserError(f"{file}: {type(chain[-1]).__name__}: {_one_line(chain[-1])}") from error


def _check_keys(config, overrides):
    """Raise UserError for an override of a key that the configuration does not have."""
    import difflib

    from ml_collections import ConfigDict

    for override in overrides:
        node, path = config, "config"
        for key in override.split("=")[0].removeprefix("--config.").split("."):
            if not isinstance(node, ConfigDict) or key not in node:
                keys = list(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, keys, n=1)
                known = ", ".join(keys) or "no keys"
                hint = f"did you mean {path}.{close[0]}?" if close else f"{path} has {known}"
                raise UserError(f"unknown key {path}.{key}: {hint}")
            node, path = node[key], f"{path}.{key}"


def _one_line(error):
    return " ".join(str(error).split())
