"""The `study` command."""

import argparse
import pathlib

from repae_jax.config.needs import check_nothing_missing
from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.study.agreement import agreement
from repae_jax.study.plan import Job, check, jobs, missing_for_runs
from repae_jax.study.report import write_study
from repae_jax.study.results import read_results
from repae_jax.study.run import read_result, run_job
from repae_jax.study.schedule import prepare, run_all, shares
from repae_jax.study.shared import check_shared, make_shared
from repae_jax.utils.lock import writing_in


def study_command(options: argparse.Namespace) -> int:
    """Run what is left of a study, or one of its runs, and write its report.

    Returns:
      The exit status: 0, or 1 where runs have other figures than those of `--against`.

    Raises:
      UserError: a bad study, files, or a run that failed.
      TryAgain: the study was interrupted.
    """
    study = read_config(options.config, options.overrides)
    if not {"config", "arms", "measured_at"} <= set(study):
        raise UserError(f"{options.config} is no study: build it with repae_jax.study.plan.base()")
    output: pathlib.Path = options.output
    others = read_results(options.against) if options.against else None
    check(study, output)
    progress = not options.quiet
    check_shared(study, output)
    if not options.report:
        check_nothing_missing(missing_for_runs(study, output))
    if options.prepare:
        with writing_in(output):
            make_shared(study, output, progress=progress)
        return 0
    if options.run:
        run_job(study, _job(study, options.run), output, progress=progress)
        return 0
    shares(options.jobs)
    results = _results(study, output)
    if not options.report:
        words = ["study", options.config, "--output", str(output), *options.overrides]
        prepare([*words, "--prepare"] + ["--quiet"] * options.quiet)
        with writing_in(output) as lock:
            run_all(
                study,
                output,
                lambda job: [*words, "--quiet", "--run", str(job)],
                lambda job: read_result(study, job, output) is not None,
                side_by_side=options.jobs,
                progress=progress,
                check=lock.check,
            )
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


def _results(study, output):
    found = [read_result(study, job, output) for job in jobs(study)]
    return [result for result in found if result is not None]


def _job(study, text):
    arm, _, seed = text.partition(":")
    if arm not in study.arms or not seed.isdecimal() or int(seed) >= study.seeds:
        known = ", ".join(study.arms)
        raise UserError(
            f"--run is {text!r}: give ARM:SEED, with an arm of {known} and a seed below "
            f"{study.seeds}"
        )
    return Job(arm, int(seed))
