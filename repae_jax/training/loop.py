"""The loop around the step: data in, metrics and pictures out, checkpoints, clean interruption."""

import contextlib
import pathlib

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from repae_jax.config.needs import check_files
from repae_jax.config.validate import check_devices, validate
from repae_jax.data import latents
from repae_jax.data.pipeline import train_batches
from repae_jax.errors import RUN_AGAIN, LostProcess, UserError, first_line, out_of_memory
from repae_jax.parallel import multihost, sharding
from repae_jax.parallel.mesh import local_rows, make_mesh, put
from repae_jax.runs import run_data
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, init_state, latent_shape, load_frozen
from repae_jax.runs.checkpoints import FOLDER, Checkpoints, saved_steps
from repae_jax.runs.fingerprint import tokenizer_sha256, weights_sha256
from repae_jax.runs.going_back import check_step, has_gone_back, set_aside
from repae_jax.runs.metrics import FOLDER as EVENTS
from repae_jax.runs.statistics import latent_moments
from repae_jax.training.online import open_comparison
from repae_jax.training.prefetch import Feed
from repae_jax.training.program import Program, uncollected
from repae_jax.training.reporter import Reporter
from repae_jax.training.trace import Trace
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.lock import Lock, writing_in
from repae_jax.utils.signals import noted

BAD_IMAGES = "bad_images.txt"  # in the work directory: those that data.on_bad_image skipped
SHARDING = "sharding.txt"  # in the work directory: where each array of the state is


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    progress: bool = True,
    profile: bool = False,
    lock: Lock | None = None,
    from_step: int | None = None,
) -> int:
    """Train in `workdir` until `config.run.steps`, going on from its newest checkpoint.

    Everything that can be wrong with the input is checked before anything is written. SIGINT,
    SIGTERM and SIGHUP save a checkpoint after the step in progress and end the run; a second one
    ends it at once, and so does one before the first step, where nobody waits for this process.
    Nothing is saved while steps are skipped: a checkpoint waits for the next that is not. All
    processes of a job call it alike; the first writes.

    Args:
      config: of a new run, or of the one in `workdir`.
      workdir: the run's folder.
      progress: whether to show a bar.
      profile: whether to trace a few steps (see `Trace`).
      lock: of `workdir`, if the caller holds it; else the first process takes it.
      from_step: go on from the checkpoint of this step, or from the beginning with 0; later ones
        are set aside. Once it has, the same call resumes from the newest.

    Returns:
      The exit status: 0 when all steps are done, 75 when a signal ended the run before.

    Raises:
      UserError: bad configuration, files, data or work directory, other data than those that the
        run began with, another process that writes there, losses that are not finite, or a disk
        that is full.
      LostProcess: another process of the job is gone.
    """
    validate(config)  # alike in every process, and before a device is claimed
    processes = multihost.processes()
    with contextlib.ExitStack() as held, contextlib.ExitStack() as closing:
        # Alone, a signal before the first step ends the run there and then.
        stopping = Stopping(closing)
        if processes.count > 1:
            stopping.note()
        with processes.together():
            check_files(config)
            check_devices(config, jax.device_count())
            changed = work_directory.check(workdir, config)
            if from_step is not None:
                if not changed and has_gone_back(workdir, from_step):
                    print(f"this run has gone back to step {from_step} and continues from there")
                    from_step = None
                else:
                    check_step(workdir, from_step, processes.index, processes.count)
        with processes.together():
            if processes.first and lock is None:
                lock = held.enter_context(writing_in(workdir))
        with processes.together():
            mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
            program = Program(config, build_models(config), mesh)
            data = run_data.open_data(config, workdir, bad_images=workdir / BAD_IMAGES)
            comparison = open_comparison(config, program.models, data)
            batches = _batches(config, data.train, mesh)
        run_data.agree(data, processes)
        with processes.together():
            # What is wrong with the weights' files shows before anything is written.
            begun = (workdir / FOLDER).exists() and from_step != 0
            initial = None if begun else _initial_state(program, data.train, progress)
        news = ""
        with processes.together():
            if processes.first:
                _claim(workdir, config, from_step)
                news = run_data.record(config, workdir, data)
        checkpoints = Checkpoints(
            workdir, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every
        )
        closing.callback(checkpoints.close)
        if checkpoints.latest_step() is None:
            state = initial or _initial_state(program, data.train, progress)
        else:
            state = _continued(program, checkpoints, batches)
        del initial
        with processes.together():
            step = int(state.step)
            reporter = Reporter(
                program, workdir, checkpoints, processes, step, progress, comparison
            )
            closing.callback(reporter.close)
            if news:
                reporter.say(news)
            _describe(program, workdir, reporter, processes)
            for line in changed:
                reporter.say(f"from step {step}: {line}")
        feed = Feed(batches, mesh, config.run.data_timeout)
        closing.callback(feed.close)
        trace = None
        if profile and processes.first:
            folder = workdir / EVENTS
            trace = Trace(folder, step, config.run.steps, reporter.say)
            closing.callback(trace.close)
        try:
            return _run(
                program, state, feed, checkpoints, reporter, stopping, processes, trace, lock
            )
        except UserError:
            if processes.count > 1:
                closing.pop_all()  # each of them would wait for the other processes
            raise
        except jax.errors.JaxRuntimeError as error:
            if out_of_memory(error):
                raise UserError(
                    f"the step does not fit the memory ({first_line(error)}): raise "
                    "--config.mesh.fsdp or --config.compute.micro_batches, or set "
                    "--config.compute.tokenizer_remat=blocks --config.compute.backbone_remat=blocks"
                ) from error
            if processes.count == 1:
                raise
            closing.pop_all()
            raise LostProcess(
                "the devices of another process do not answer, it may be gone "
                f"({first_line(error)}); start all processes again to go on from "
                "the last checkpoint"
            ) from error


def _run(program, state, feed, checkpoints, reporter, stopping, processes, trace, lock):
    run, key = program.config.run, program.key()
    measured_every = program.config.evaluation.every
    step, last, stop = int(state.step), program.config.run.steps, False
    if step > last:
        reporter.say(f"nothing to do: the run is at step {step}, past config.run.steps {last}")
        return 0
    if step:
        reporter.say(f"going on from step {step}")
    reporter.begin(step)
    pending = metrics = due = None
    while (step < last and not stop) or due:
        if lock is not None:
            lock.check()
        if trace:
            trace.before(step, metrics)
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            batch = next(feed)
            requests = program.requests(stopping.requested)
            with uncollected():  # the first call compiles
                state, metrics = program.step(state, batch, key, requests)
        stopping.note()
        step += 1
        if trace:
            trace.after(step, metrics)
        # The metrics of a step are read while the next one runs.
        if pending is not None:
            stop = reporter.step(*pending) or stop
        pending = (step, metrics)
        if processes.count == 1:  # nobody else to agree with
            stop = stopping.requested
        if not due and (stop or step >= last or step % run.checkpoint_every == 0):
            due = step
        if due:  # was it skipped?
            stop = reporter.step(*pending) or stop
            pending = None
            if not reporter.skipping:
                checkpoints.save(step, state, feed.state, due=due)
                due = None
        if step < last:
            if step % run.sample_every == 0:
                reporter.samples(step, state)
            if measured_every and step % measured_every == 0:
                reporter.evaluate(step, state)
    if step < last:
        checkpoints.wait()
        reporter.say(f"stopped at step {step} of {last}, saved; run the same command to go on")
        return RUN_AGAIN
    reporter.samples(step, state)
    reporter.evaluate(step, state)
    checkpoints.wait()
    reporter.say(f"done: {step} steps")
    return 0


class Stopping:
    """Whether a signal asks the run to stop, from the moment that it is to be saved first."""

    def __init__(self, closing: contextlib.ExitStack):
        self._closing, self._event = closing, None

    def note(self) -> None:
        """From here on a signal no longer ends the run there and then."""
        if self._event is None:
            self._event = self._closing.enter_context(noted())

    @property
    def requested(self) -> bool:
        """Whether one has asked."""
        return self._event is not None and self._event.is_set()


def _claim(workdir, config, from_step):
    """Make the work directory this configuration's; set aside what was saved behind `from_step`."""
    if from_step is None:
        work_directory.claim(workdir, config, step=max(saved_steps(workdir), default=0))
        return
    aside = set_aside(workdir, from_step)
    # The same command again resumes, once it has gone back and there are steps to train.
    continues = aside or from_step < config.run.steps
    notes = {"from_step": from_step} if continues else {}
    notes |= {"set_aside": aside} if aside else {}
    work_directory.claim(workdir, config, step=from_step, **notes)
    if aside:
        print(f"what was saved after step {from_step} is in {workdir / aside}, a work directory")


def _batches(config, source, mesh):
    return train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        rows=local_rows(mesh, config.batch_size),
        workers=config.data.workers,
        flip=config.data.flip,
    )


def _initial_state(program, source, progress):
    """The state at step 0, its latent statistics measured where none came with the VAE."""
    config, models = program.config, program.models

    def measure(vae):
        if config.data.source == latents.KIND:
            return latents.statistics_of(source)
        moments = latent_moments(
            models.tokenizer, vae, source, config.batch_size, progress=progress
        )
        if jax.process_count() > 1:  # to the last bit the same everywhere
            moments = multihost_utils.broadcast_one_to_all(moments)
        return moments

    def check(vae, frozen):  # a cache is of one VAE and its teachers: these may be others
        if config.data.source != latents.KIND:
            return
        teachers = {
            name: weights_sha256(frozen["teachers"][name]["params"]) for name in models.teachers
        }
        shape = latent_shape(config, models)
        latents.check_for_training(source, tokenizer_sha256(vae), teachers, shape)

    return init_state(config, models, measure, program.shardings, check)


def _continued(program, checkpoints, batches):
    """The newest checkpoint's state on the devices; `batches` go on where it stood."""
    state, data_state = checkpoints.restore(program.template)
    # A run that was imported brings no teachers and no LPIPS: their files do.
    missing = program.template.frozen.keys() - state.frozen.keys()
    frozen = load_frozen(program.config, program.models, sorted(missing))
    shardings = {name: program.shardings.frozen[name] for name in frozen}
    batches.set_state(data_state)
    return state.replace(frozen={**state.frozen, **put(frozen, shardings)})


def _describe(program, workdir, reporter, processes):
    """Print where the state is, and write the whole table to the work directory."""
    shapes, shardings = program.template, program.shardings
    axes = ", ".join(f"{name} {size}" for name, size in program.mesh.shape.items())
    kind = program.mesh.devices.flat[0].device_kind
    reporter.say(
        f"{program.mesh.size} devices ({kind}; {axes}), {processes.count} processes\n"
        + sharding.summary(shapes, shardings)
    )
    if processes.first:
        text = sharding.table(shapes, shardings) + "\n"
        write_atomically(workdir / SHARDING, text.encode())
