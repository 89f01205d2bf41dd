"""The `study` command."""

import argparse
import json
import os
import pathlib

from repae_jax.errors import UserError
from repae_jax.interop.files import read_metadata
from repae_jax.overrides import read_config
from repae_jax.study.plan import (
    DATA,
    Job,
    check,
    jobs,
    own_teachers,
    placed_config,
    teacher_path,
)
from repae_jax.study.report import write_study
from repae_jax.study.run import JUDGE, read_result, run_job
from repae_jax.study.schedule import run_all


def study_command(options: argparse.Namespace) -> int:
    """Run what is missing of `options.config` in `options.output`, and write its report.

    Returns:
      0.

    Raises:
      UserError: a bad study, files, or a run that failed.
    """
    study = read_config(options.config, options.overrides)
    if not {"config", "arms", "measured_at"} <= set(study):
        raise UserError(f"{options.config} is no study: build it with repae_jax.study.plan.base()")
    output: pathlib.Path = options.output
    check(study, output)
    progress = not options.quiet
    if options.run:
        run_job(study, _job(study, options.run), output, progress=progress)
        return 0
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}: give at least 1")
    if not options.report:
        _prepare(study, output, progress)
        words = ["study", options.config, "--output", str(output), *options.overrides, "--quiet"]
        run_all(
            study,
            output,
            lambda job: [*words, "--run", str(job)],
            lambda job: read_result(study, job, output) is not None,
            side_by_side=options.jobs,
            progress=progress,
        )
    results = [read_result(study, job, output) for job in jobs(study)]
    results = [result for result in results if result is not None]
    if not results:
        raise UserError(f"{output} holds no result yet: run the study without --report")
    path = write_study(study, output, results, _about(study, output))
    print((output / "tables.md").read_text())
    print(f"{len(results)} of {len(jobs(study))} runs; report: {path}")
    return 0


def _job(study, text):
    arm, _, seed = text.partition(":")
    if arm not in study.arms or not seed.isdecimal():
        known = ", ".join(study.arms)
        raise UserError(f"--run is {text!r}: give ARM:SEED, with an arm of {known}")
    return Job(arm, int(seed))


def _prepare(study, output, progress):
    """What the runs share, unless it is there: rendered scenes, the teachers and the judge."""
    from repae_jax.data.prepare import prepare
    from repae_jax.study.judge import train_judge
    from repae_jax.training.teacher import pretrain_teacher

    config = placed_config(study, output)
    for split, count in study.rendered.items():
        if count:
            prepare(
                f"scenes:{count}",
                output / DATA / split,
                split=split,
                resolution=config.data.resolution,
                workers=os.cpu_count() or 1,
                progress=progress,
            )
    for name in own_teachers(config):
        if not teacher_path(output, name).is_file():
            pretrain_teacher(config, name, progress=progress)
    if not (output / JUDGE).is_file():
        train_judge(study, config.data, output / JUDGE, progress=progress)


def _about(study, output):
    said = []
    names = own_teachers(study.config)
    paths = {f"the teacher {name}": teacher_path(output, name) for name in names}
    for name, path in {**paths, "the judge": output / JUDGE}.items():
        reached = json.loads(read_metadata(path)["accuracy"])
        said.append(f"{name} classifies {100 * reached:.1f} % of the held-out images correctly")
    return "; ".join(said).capitalize() + "."
