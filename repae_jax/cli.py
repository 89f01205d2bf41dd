"""The command line: `python -m repae_jax <command>`, or `repae <command>`."""

import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import logging as absl_logging

from repae_jax.commands.arguments import make_parser
from repae_jax.config.overrides import PREFIX, apply_overrides, read_config
from repae_jax.errors import TRACEBACK, UserError, explained
from repae_jax.utils import process_env, signals, streams
from repae_jax.utils.compilation_cache import use_compilation_cache

# Commands whose result is what they print.
PRINTING = ("inspect", "compile", "evaluate", "evaluate-vae")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 2: bad input, said in one line. 70: an error that nobody has foreseen, in one line.
    75: a signal ended the training before its last step, after saving, or SIGTERM or SIGHUP ended
    another command, or another process of the job is gone; run the same command to go on. 130:
    Ctrl-C ended another command.
    """
    if getattr(sys.stdout, "errors", "") == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return signals.until_signal(lambda: _main(arguments))


def _main(arguments):
    try:
        options = _parse(arguments)
    except SystemExit as end:  # such as that of --help
        sys.exit(streams.checked(end.code or 0, needed=True))
    if options.command is None:
        return streams.checked(0, needed=True)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax explains itself at length
    try:
        process_env.prepare()
        use_compilation_cache()
        status = COMMANDS[options.command](options)
    except Exception as error:
        signals.check()  # which may be what a library made this error of
        return _ended_by(error)
    return streams.checked(status, needed=options.command in PRINTING)


def _parse(arguments):
    parser = make_parser()
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
    """Print the line of an error; returns the exit status."""
    if os.environ.get(TRACEBACK, "0") != "0":
        traceback.print_exception(error)
    status, line = explained(error)
    print(line, file=sys.stderr, flush=True)
    if _is_one_of_several():
        sys.stdout.flush()
        os._exit(status)  # in order it would wait for the others, and they may wait for it
    return status


def _is_one_of_several():
    """Whether this process has joined others."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _join_processes(options):
    told = (options.coordinator, options.process_count, options.process_index)
    if options.distributed or any(value is not None for value in told):
        from repae_jax.parallel.multihost import start

        start(*told)


def _train(options):
    if options.config:
        config = read_config(options.config, options.overrides)
    else:
        from repae_jax.runs.workdir import load_config

        config = apply_overrides(load_config(options.workdir), options.overrides)
    from repae_jax.config.needs import check_files
    from repae_jax.config.validate import validate

    validate(config)
    check_files(config)
    _join_processes(options)
    from repae_jax.training.loop import train

    status = train(
        config,
        options.workdir,
        progress=not options.quiet,
        profile=options.profile,
        from_step=options.from_step,
    )
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
    from repae_jax.config.validate import validate
    from repae_jax.utils.lock import writing

    validate(config)
    from repae_jax.training.teacher import pretrain_teacher

    with writing(path):
        accuracy = pretrain_teacher(config, name, progress=not options.quiet)
    print(f"teacher: {path}  (held-out accuracy {100 * accuracy:.1f} %)")
    return 0


def _sample(options):
    from repae_jax.commands.sample import sample_command

    return sample_command(options)


def _generate(options):
    _join_processes(options)
    from repae_jax.commands.generate import generate_command

    return generate_command(options)


def _report(options):
    from repae_jax.evaluation.run_report import report_command

    return report_command(options)


def _evaluate(options):
    _join_processes(options)
    from repae_jax.commands.evaluate import evaluate_command

    return evaluate_command(options)


def _evaluate_vae(options):
    from repae_jax.commands.evaluate_vae import evaluate_vae_command

    return evaluate_vae_command(options)


def _evaluate_latents(options):
    from repae_jax.commands.evaluate_latents import evaluate_latents_command

    return evaluate_latents_command(options)


def _evaluate_alignment(options):
    from repae_jax.commands.evaluate_alignment import evaluate_alignment_command

    return evaluate_alignment_command(options)


def _study(options):
    from repae_jax.study.schedule import keep_to_share

    keep_to_share()
    from repae_jax.commands.study import study_command

    return study_command(options)


def _prepare(options):
    from repae_jax.data.prepare import prepare_command

    return prepare_command(options)


def _encode(options):
    config = read_config(options.config, options.overrides)
    _join_processes(options)
    from repae_jax.training.encode import encode_command

    return encode_command(options, config)


def _compile(options):
    config = read_config(options.config, options.overrides)
    from repae_jax.aot.report import compile_command

    return compile_command(options, config)


def _convert(options):
    from repae_jax.runs.conversion import convert

    def make_config(told):
        if options.config:
            return read_config(options.config, options.overrides)
        return apply_overrides(told(), options.overrides)

    done = convert(
        options.source, options.target, options.to, make_config, progress=not options.quiet
    )
    print(done)
    return 0


def _inspect(options):
    from repae_jax.runs.inspection import describe

    print(describe(options.path))
    return 0


COMMANDS = {
    "train": _train,
    "pretrain-teacher": _pretrain_teacher,
    "sample": _sample,
    "generate": _generate,
    "report": _report,
    "evaluate": _evaluate,
    "evaluate-vae": _evaluate_vae,
    "evaluate-latents": _evaluate_latents,
    "evaluate-alignment": _evaluate_alignment,
    "study": _study,
    "prepare": _prepare,
    "encode": _encode,
    "compile": _compile,
    "convert": _convert,
    "inspect": _inspect,
}
