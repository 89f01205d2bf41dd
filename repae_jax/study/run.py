"""One run of a study: its training, its measures at the requested steps, and its result."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.storage import differences, from_stored
from repae_jax.config.versions import add_version
from repae_jax.errors import RUN_AGAIN, Diverged, TryAgain, UserError
from repae_jax.evaluation.latents import pca_colors
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import build_models
from repae_jax.runs.checkpoints import saved_steps
from repae_jax.runs.initial_state import load_frozen
from repae_jax.runs.open_run import load_state
from repae_jax.study.judge import load_judge
from repae_jax.study.measures import Measures, StepMeasures
from repae_jax.study.plan import RESULT, Job, jobs, run_config, study_config
from repae_jax.study.results import Result, check_result
from repae_jax.study.schedule import check_share
from repae_jax.study.shared import JUDGE, accuracies, check_data, check_made
from repae_jax.training.default_hooks import default_hooks
from repae_jax.training.loop import train
from repae_jax.training.program import Program
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.figures import class_grid, pca_figure, save_png
from repae_jax.utils.finite import NotFinite
from repae_jax.utils.lock import writing_in
from repae_jax.utils.schema import read_json
from repae_jax.utils.sealed import seal

SAMPLES, LATENTS = "study_samples.png", "study_latents.png"
_ROWS, _EACH = 10, 8  # rows of a picture of samples, at most, and samples of each


def run_job(study: ConfigDict, job: Job, output: pathlib.Path, *, progress: bool = True) -> None:
    """Train and measure one run, unless it has a result; writes `result.json` to its folder.

    A diverged run has a result too: its figures end there, and "diverged" describes the cause. Runs
    that would take its VAE are marked as diverged without training. "seconds" are the times of the
    last process that worked on the run.

    Raises:
      UserError: files are wrong, the folder holds a run of another configuration, or the run whose
        VAE it takes is not finished.
      TryAgain: a signal ended the training.
    """
    check_share()
    config, workdir = run_config(study, job, output), job.workdir(output)
    with writing_in(workdir) as lock:
        if read_result(study, job, output) is None:
            _run(study, job, output, config, lock, progress)


def _run(study, job, output, config, lock, progress):
    workdir = job.workdir(output)
    check_made(study, output)
    check_data(study, output)
    judge = load_judge(study, output / JUDGE)
    started = time.perf_counter()
    diverged = _diverged_before(study, job, output)
    begun = not diverged
    if begun:
        try:
            done = train(config, workdir, make_hooks=default_hooks, progress=progress, lock=lock)
            if done == RUN_AGAIN:
                raise TryAgain(f"{job} was interrupted and saved; run the same command to resume")
        except Diverged as error:
            diverged = error.what
    trained = time.perf_counter()
    figures = {}
    if begun:
        figures, diverged = _measure(study, judge, config, workdir, output, diverged)
    result = {
        "arm": job.arm,
        "seed": job.seed,
        "config": _within(output, add_version(config.to_dict())),
        "made_with": {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
        "accuracies": accuracies(study, output),
        "gflop_per_image": step_flops(config) / 1e9,
        "diverged": diverged,
        "figures": figures,
        "seconds": {
            "training": trained - started,
            "measuring": time.perf_counter() - trained,
        },
    }
    lock.check()
    write_atomically(workdir / RESULT, (json.dumps(seal(result), indent=1) + "\n").encode())


def read_result(study: ConfigDict, job: Job, output: pathlib.Path) -> dict[str, Any] | None:
    """Read the result that `run_job` wrote; None if there is none yet.

    Raises:
      UserError: the result is damaged, or of another configuration.
    """
    path = job.workdir(output) / RESULT
    if not path.exists() and not path.is_symlink():
        return None
    try:
        result = check_result(read_json(path), source=str(path))
    except UserError as error:
        raise UserError(f"{error}; without the file, the run is measured again") from error
    _check_configuration(study, job, output, result, str(path))
    missing = [str(step) for step in study.measured_at if str(step) not in result["figures"]]
    if missing and not result["diverged"]:
        raise UserError(
            f"{path} has no figures of step {', '.join(missing)}, at which the study measures: "
            "without the file, the run is measured again"
        )
    return result


def take_results(study: ConfigDict, output: pathlib.Path, results: Sequence[Result]) -> None:
    """Take the results of runs that another folder holds; runs with a result keep theirs.

    A run that takes the VAE of such a run cannot run here: that run's checkpoints are elsewhere.

    Raises:
      UserError: a result is of another study or another configuration, or other networks than those
        of this folder have measured it.
    """
    own = accuracies(study, output)
    known = {str(job): job for job in jobs(study)}
    for result in results:
        name = f"{result['arm']}:{result['seed']}"
        if name not in known:
            raise UserError(f"the results have {name}, which is no run of the study {study.name!r}")
        _check_configuration(study, known[name], output, result, f"the result of {name}")
        if result["accuracies"] != own:
            raise UserError(
                f"the result of {name} was measured by other networks, of the accuracies "
                f"{result['accuracies']} in place of {own}: their study was made with other "
                "software or on another machine, so run all of it in one place"
            )
    for result in results:
        path = known[f"{result['arm']}:{result['seed']}"].workdir(output) / RESULT
        if not path.exists():
            write_atomically(path, (json.dumps(seal(result), indent=1) + "\n").encode())


def _check_configuration(study, job, output, result, source):
    wanted = _within(output, run_config(study, job, output).to_dict())
    made = from_stored(result["config"], source=source).to_dict()
    told = differences(made, wanted)  # keys unknown to an earlier version take their defaults
    if told:
        raise UserError(
            f"{source} is of another configuration: {'; '.join(told[:3])}; take another --output"
        )


def _diverged_before(study, job, output):
    """The cause if the run whose VAE this run takes has diverged; else ""."""
    vae = study.arms[job.arm].vae
    if not vae:
        return ""
    source = Job(vae, job.seed)
    before = read_result(study, source, output)
    if before is None:
        raise UserError(f"{job} takes the VAE of {source}, which is not done: --run {source} first")
    return before["diverged"] and f"{source}, whose VAE it takes, diverged: {before['diverged']}"


def _within(output, value):
    """Make a configuration's paths relative to the study's folder, so that the folder may move."""
    if isinstance(value, dict):
        return {key: _within(output, item) for key, item in value.items()}
    return value.removeprefix(f"{output}{os.sep}") if isinstance(value, str) else value


def step_flops(config):
    """Operations per image of the step on whole images."""
    whole = config.copy_and_resolve_references()
    whole.compute.stripes = 1
    return Program(whole, build_models(whole), make_mesh(1, 1)).flops()


def _measure(study, judge, config, workdir, output, diverged):
    """Measure a run; returns {step: figures} and the cause of divergence, or "".

    A run that has `diverged` is measured up to its last checkpoint. A run with NaN or infinite
    latents or images counts as diverged too. Draws pictures of the last measured state.
    """
    own = build_models(config)
    models, frozen = own, {}
    if own.backbone is not None and not own.teachers:  # CKNNA needs the study's teacher
        whole = study_config(study, output)
        models = dataclasses.replace(own, teachers=build_models(whole).teachers)
        frozen = load_frozen(whole, models, ("teachers",))
    measures = Measures(study, judge, config, models)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    figures, measured = {}, None
    saved = saved_steps(workdir)
    for step in study.measured_at:
        # If that step was skipped, the next completed step was saved.
        behind = [s for s in saved if s >= step]
        if diverged and not behind:
            break
        state = load_state(workdir, config, own, one, step=min(behind, default=step))
        try:
            measured = measures(state.replace(frozen={**state.frozen, **frozen}))
        except NotFinite as error:
            diverged = diverged or f"step {step}: {error}"
            break
        figures[str(step)] = measured.figures
    if measured is not None:
        _draw(measured, workdir)
    return figures, diverged


def _draw(measured: StepMeasures, workdir):
    if measured.samples is not None:
        names = measured.asked.names[:_ROWS]
        rows = class_grid(measured.samples, measured.asked.rows, names, _EACH)
        save_png(workdir / SAMPLES, rows)
    colors = pca_colors([np.asarray(measured.latents)])[0]
    save_png(workdir / LATENTS, pca_figure(measured.heldout, {"latents": colors}))
