"""The training loop: it feeds batches to the step, metrics to monitor and log, and calls hooks."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from repae_jax.config.validate import validate
from repae_jax.errors import RUN_AGAIN, LostProcess, UserError, first_line, out_of_memory
from repae_jax.parallel import multihost
from repae_jax.parallel.multihost import Processes
from repae_jax.runs import run_data
from repae_jax.runs.checkpoints import FOLDER
from repae_jax.runs.initial_state import initial_state
from repae_jax.runs.metrics import FOLDER as EVENTS
from repae_jax.runs.state import TrainState
from repae_jax.training import start
from repae_jax.training.hooks import Hook, MakeHooks, RunContext, StepEnd, StepMetrics
from repae_jax.training.prefetch import Prefetch
from repae_jax.training.program import Program, gc_disabled
from repae_jax.training.trace import Trace
from repae_jax.utils.lock import Lock, writing_in
from repae_jax.utils.signals import stop_event


def no_hooks(run: RunContext) -> Sequence[Hook]:
    """Make no hooks: the run saves no checkpoints."""
    del run
    return ()


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    make_hooks: MakeHooks = no_hooks,
    progress: bool = True,
    profile: bool = False,
    lock: Lock | None = None,
    from_step: int | None = None,
) -> int:
    """Train in `workdir` until `config.run.steps`, resuming from its newest checkpoint.

    All input is checked before anything is written. SIGINT, SIGTERM and SIGHUP end the run after
    the step in progress, once the hooks have saved it. A second signal ends it at once, and so does
    a signal before the first step in a job of one process. A run never ends on a skipped step. All
    processes of a job make the same call; the first writes.

    Args:
      config: the configuration of a new run, or of the run in `workdir`.
      workdir: the run's folder.
      make_hooks: makes the hooks; `default_hooks` makes hooks that save checkpoints, draw samples
        and evaluate. Without hooks, nothing is saved.
      progress: whether to show a bar.
      profile: whether to trace a few steps (see `Trace`).
      lock: the lock of `workdir`, if the caller holds it; else the first process takes it.
      from_step: continue from the checkpoint at this step, or from the beginning for 0; later
        checkpoints are set aside. A repeated call resumes from the newest checkpoint.

    Returns:
      The exit status: 0 when all steps are completed, 75 when a signal ended the run before.

    Raises:
      UserError: the configuration, files, data or work directory are wrong; the data have changed
        since the run began; another process writes there; losses are NaN or infinite; or the disk
        is full.
      LostProcess: another process of the job is gone.
    """
    validate(config)  # gives the same result in every process, before devices are claimed
    processes = multihost.processes()
    with contextlib.ExitStack() as held, contextlib.ExitStack() as closing:
        # A single process ends at once on a signal before its first step.
        stopping = Stopping(closing)
        if processes.count > 1:
            stopping.note()
        with processes.together():
            changed, from_step = start.check(config, workdir, from_step, processes)
        with processes.together():
            if processes.first and lock is None:
                lock = held.enter_context(writing_in(workdir))
        with processes.together():
            run = start.open_context(config, workdir, processes, progress=progress)
            program = Program(config, run.models, run.mesh)
            batches = start.open_batches(run)
            hooks = make_hooks(run)
        run_data.agree(run.data, processes)
        at_first = functools.partial(
            initial_state, config, run.models, run.data.train, program.shardings, progress=progress
        )
        with processes.together():
            # A new run loads its weights now: errors in the files show before it writes anything.
            begun = (workdir / FOLDER).exists() and from_step != 0
            state = None if begun else at_first()
        with processes.together():
            news = start.claim(run, from_step) if processes.first else ""
        newest = run.checkpoints.latest_step()
        closing.callback(run.checkpoints.close)
        if newest is not None:
            state = start.resume(run, program, batches)
        elif state is None:
            state = at_first()
        closing.callback(run.logger.close)
        with processes.together():
            run.logger.begin(step := int(state.step))
            if news:
                run.logger.say(news)
            start.describe(run, program)
            for line in changed:
                run.logger.say(f"from step {step}: {line}")
        prefetch = Prefetch(batches, run.mesh, config.run.data_timeout)
        closing.callback(prefetch.close)
        trace = None
        if profile and processes.first:
            trace = Trace(workdir / EVENTS, step, config.run.steps, run.logger.say)
            closing.callback(trace.close)
        with _device_errors_explained(processes, closing):
            return _run(run, program, state, prefetch, hooks, stopping, trace, lock)


def _run(
    run: RunContext,
    program: Program,
    state: TrainState,
    batches: Prefetch,
    hooks: Sequence[Hook],
    stopping: "Stopping",
    trace: Trace | None = None,
    lock: Lock | None = None,
) -> int:
    """Step until all steps are completed or a signal requests a stop; returns the exit status."""
    key, last, say = program.key(), run.config.run.steps, run.logger.say
    step, metrics, report = int(state.step), None, MetricsReport(run)
    if step > last:
        say(f"nothing to do: the run is at step {step}, past config.run.steps {last}")
        return 0
    if step:
        say(f"resuming from step {step}")
    ended = step >= last
    if not ended:
        say("compiling the train step")
    while not ended:
        if lock is not None:
            lock.check()
        if trace:
            trace.before(step, metrics and metrics.arrays)
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            batch = next(batches)
            requests = program.requests(stopping.requested)
            with gc_disabled():  # the first call compiles
                state, arrays = program.step(state, batch, key, requests)
        stopping.note()
        step += 1
        if trace:
            trace.after(step, arrays)
        report(metrics)  # the metrics of the step before, while this one runs
        # All processes must stop at the same step, so their requests travel with a step. A single
        # process stops at once.
        stop = stopping.requested if run.processes.count == 1 else metrics and metrics.stop
        metrics = StepMetrics(step, arrays)
        end = StepEnd(step, state, batches.state, metrics, report, ending=stop or step >= last)
        for hook in hooks:
            hook(end)
        ended = end.ending and not metrics.skipped
    report(metrics)
    if step >= last:
        for hook in hooks:
            hook(StepEnd(step, state, batches.state, metrics, report, ending=True, done=True))
    run.checkpoints.wait()
    saved = run.checkpoints.latest_step() == step
    if step >= last:
        say(f"done: {step} steps{'' if saved else ', not saved'}")
        return 0
    how = "saved" if saved else "not saved"
    say(f"stopped at step {step} of {last}, {how}; run the same command to resume")
    return RUN_AGAIN


class MetricsReport:
    """Passes each step's metrics once to the monitor, which may raise, and to the log."""

    def __init__(self, run: RunContext):
        self._run, self._last = run, 0

    def __call__(self, metrics: StepMetrics | None) -> None:
        """Wait until the step is done and pass on its metrics; a repeated call does nothing."""
        if metrics is None or metrics.step == self._last:
            return
        self._last = metrics.step
        run, config = self._run, self._run.config.run
        run.logger.advance()
        run.monitor.check_step(metrics.step, metrics.skipped, lambda: metrics.values)
        if metrics.step % config.log_every == 0 or metrics.step == config.steps:
            values = {**metrics.values, "skipped_steps": float(run.monitor.skipped)}
            run.logger.metrics(metrics.step, values)
            run.monitor.check_metrics(metrics.step, values)


class Stopping:
    """Records whether a signal requests the run to stop after saving, from `note` on."""

    def __init__(self, closing: contextlib.ExitStack):
        self._closing, self._event = closing, None

    def note(self) -> None:
        """Start to record signals, which until now end the run at once."""
        if self._event is None:
            self._event = self._closing.enter_context(stop_event())

    @property
    def requested(self) -> bool:
        """Whether a signal has requested a stop."""
        return self._event is not None and self._event.is_set()


@contextlib.contextmanager
def _device_errors_explained(processes: Processes, closing: contextlib.ExitStack) -> Iterator[None]:
    """Turn the devices' errors into errors of one line.

    In a job of several processes nothing is closed after an error, since closing would wait for the
    other processes.
    """
    try:
        yield
    except UserError:
        if processes.count > 1:
            closing.pop_all()
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
            f"({first_line(error)}); start all processes again to resume from "
            "the last checkpoint"
        ) from error
