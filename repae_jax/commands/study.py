"""The `study` command."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from repae_jax.commands.options import DEFAULT, add_quiet, read_configuration
from repae_jax.errors import UserError, advise_on_bad_images

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from repae_jax.study.plan import Job
    from repae_jax.study.results import Result

SUMMARY = "train and measure the arms of an experiment over several seeds, and compare them"
EPILOG = """\
STUDY is a packaged study such as study_digits (`configs` lists them), or a Python file
like it: a configuration, arms that change it, seeds, and claims. Finished runs are
kept: the same command continues the study, and refuses a changed study whose changes
concern a run that exists. Writes report.html, tables.md and results.jsonl.

examples:
  study study_digits --output runs/study_digits --jobs 2
  study study_digits --output runs/try --config.seeds=1
  study study_digits --output runs/study_digits --report
  study study_digits --output runs/again --against docs/study_digits.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "config", metavar="STUDY", help="a packaged study, or a Python file with get_config()"
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the study's folder")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of concurrent runs, which share the processor's cores; it changes the last "
        "digits of figures; on a GPU leave it at 1 " + DEFAULT,
    )
    parser.add_argument(
        "--run", metavar="ARM:SEED", help="run only this run, as the study starts it"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only make the shared parts: teachers, the judge"
    )
    parser.add_argument("--report", action="store_true", help="only compare the finished runs")
    parser.add_argument(
        "--take",
        metavar="RESULTS",
        type=pathlib.Path,
        help="a results.jsonl of this study from another machine: its runs are not run again",
    )
    parser.add_argument(
        "--against",
        metavar="RESULTS",
        type=pathlib.Path,
        help="another results.jsonl: report which runs have the same figures, bit by bit; the exit "
        "status is 1 if the figures of a run differ",
    )
    add_quiet(parser)


@advise_on_bad_images(
    "a study keeps to its images: or take another --output, with "
    "--config.config.data.on_bad_image=skip to pass over such images"
)
def run(options: argparse.Namespace) -> int:
    """Run the remaining runs of a study, or one of them, and write the report.

    Returns:
      The exit status: 0, or 1 if a run's figures differ from those in `--against`.

    Raises:
      UserError: the study or its files are wrong, or a run failed.
      TryAgain: the study was interrupted.
    """
    from repae_jax.study.schedule import restrict_cores

    restrict_cores()  # before JAX starts threads
    from repae_jax.study.agreement import agreement
    from repae_jax.study.plan import check, jobs
    from repae_jax.study.report import write_study
    from repae_jax.study.results import read_results
    from repae_jax.study.run import run_job, take_results
    from repae_jax.study.schedule import divide_cores, prepare
    from repae_jax.study.shared import make_shared
    from repae_jax.utils.lock import writing_in

    study, output, progress = _read_study(options), options.output, not options.quiet
    others = read_results(options.against) if options.against else None
    check(study, output)
    _check_needs(study, options)
    if options.prepare:
        with writing_in(output):
            make_shared(study, output, progress=progress)
        return 0
    if options.run:
        run_job(study, _job(study, options.run), output, progress=progress)
        return 0
    if options.take:
        taken = read_results(options.take)
        prepare(_words_to_prepare(options))
        with writing_in(output):
            take_results(study, output, taken)
    divide_cores(options.jobs)
    results = _results(study, output)
    if not options.report:
        _run_missing(study, options)
        results = _results(study, output)
    if not results:
        raise UserError(f"{output} holds no result yet: run the study without --report")
    path = write_study(study, output, results)
    print((output / "tables.md").read_text())
    print(f"{len(results)} of {len(jobs(study))} runs; report: {path}")
    if others is None:
        return 0
    found = agreement(results, others)
    print(f"against {options.against}: {found}")
    return 1 if found.apart else 0


def _read_study(options: argparse.Namespace) -> ConfigDict:
    study = read_configuration(options)
    if not {"config", "arms", "measured_at"} <= set(study):
        raise UserError(f"{options.config} is no study: build it with repae_jax.study.plan.base()")
    return study


def _check_needs(study: ConfigDict, options: argparse.Namespace) -> None:
    """Raise UserError for shared files of another study, and for missing files of future runs."""
    from repae_jax.config.needs import check_nothing_missing
    from repae_jax.study.plan import missing_for_runs
    from repae_jax.study.shared import check_shared

    check_shared(study, options.output)
    if not options.report:
        check_nothing_missing(missing_for_runs(study, options.output))


def _run_missing(study: ConfigDict, options: argparse.Namespace) -> None:
    """Make the shared parts, and run the runs without a result, each in its own process."""
    from repae_jax.study.run import read_result
    from repae_jax.study.schedule import prepare, run_all
    from repae_jax.utils.lock import writing_in

    output = options.output
    prepare(_words_to_prepare(options))
    with writing_in(output) as lock:
        run_all(
            study,
            output,
            lambda job: [*_words(options), "--quiet", "--run", str(job)],
            lambda job: read_result(study, job, output) is not None,
            side_by_side=options.jobs,
            progress=not options.quiet,
            check=lock.check,
        )


def _words(options: argparse.Namespace) -> list[str]:
    """The words of this study's command."""
    return ["study", options.config, "--output", str(options.output), *options.overrides]


def _words_to_prepare(options: argparse.Namespace) -> list[str]:
    return [*_words(options), "--prepare"] + ["--quiet"] * options.quiet


def _results(study: ConfigDict, output: pathlib.Path) -> list[Result]:
    from repae_jax.study.plan import jobs
    from repae_jax.study.run import read_result

    found = [read_result(study, job, output) for job in jobs(study)]
    return [result for result in found if result is not None]


def _job(study: ConfigDict, text: str) -> Job:
    from repae_jax.study.plan import Job
    from repae_jax.utils.schema import as_whole

    arm, _, seed = text.partition(":")
    number = as_whole(seed)
    if arm not in study.arms or number is None or number >= study.seeds:
        known = ", ".join(study.arms)
        raise UserError(
            f"--run is {text!r}: give ARM:SEED, with an arm of {known} and a seed below "
            f"{study.seeds}"
        )
    return Job(arm, number)
