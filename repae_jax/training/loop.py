"""The loop around the step: data in, metrics and pictures out, checkpoints, clean interruption."""

import contextlib
import math
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data import latents
from repae_jax.data.pipeline import train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.evaluation.figures import class_grid, save_png
from repae_jax.parallel.mesh import make_mesh, over_batch, put_batch, replicated
from repae_jax.sampling.generate import make_generate
from repae_jax.training import workdir as work_directory
from repae_jax.training.build import (
    build_models,
    build_objective,
    build_optimizers,
    describe,
    init_state,
    latent_shape,
    load_frozen,
    state_template,
)
from repae_jax.training.checkpoints import FOLDER, Checkpoints
from repae_jax.training.draws import sample_draws
from repae_jax.training.encode import fingerprint
from repae_jax.training.metrics import MetricWriter
from repae_jax.training.run import make_sampler, sampling_weights
from repae_jax.training.statistics import latent_moments
from repae_jax.training.step import make_train_step
from repae_jax.validation import check_devices, check_files, validate

BAD_IMAGES = "bad_images.txt"  # in the work directory: those that data.on_bad_image skipped
INTERRUPTED = 75  # exit status: saved before the end, run the same command to go on (EX_TEMPFAIL)
SHOWN = ("denoising_loss", "proj_loss", "reconstruction_loss")


def train(config: ConfigDict, workdir: pathlib.Path, *, progress: bool = True) -> int:
    """Train in `workdir` until `config.run.steps`, going on from its newest checkpoint.

    Everything that can be wrong with the input is checked before anything is written. SIGINT
    and SIGTERM save a checkpoint after the step in progress and end the run; a second one ends
    it at once.

    Returns:
      The exit status: 0 when all steps are done, 75 when a signal ended the run before.

    Raises:
      UserError: bad configuration, files, data or work directory, or a loss that is not finite.
    """
    validate(config)
    check_files(config)
    work_directory.check(workdir, config)
    check_devices(config, jax.device_count())
    source = open_source(config.data, "train", bad_images=workdir / BAD_IMAGES)
    batches = train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        flip=config.data.flip,
    )
    models = build_models(config)
    # What is wrong with the weights' files shows before anything is written.
    begun = (workdir / FOLDER).exists()
    initial = None if begun else _initial_state(config, models, source)
    work_directory.claim(workdir, config)

    mesh = make_mesh()
    checkpoints = Checkpoints(workdir, keep=config.run.keep_checkpoints)
    with contextlib.ExitStack() as closing:
        closing.callback(checkpoints.close)
        if checkpoints.latest_step() is None:
            initial = initial or _initial_state(config, models, source)
            state = jax.device_put(initial, replicated(mesh))
        else:
            state = _continued(config, models, mesh, checkpoints, batches)
        del initial
        print(describe(state))
        writer = MetricWriter(workdir)
        closing.callback(writer.close)
        reporter = Reporter(config, models, workdir, writer, progress)
        closing.callback(reporter.close)
        interruption = closing.enter_context(catch_signals())
        return _run(config, models, mesh, state, batches, checkpoints, reporter, interruption)


def _run(config, models, mesh, state, batches, checkpoints, reporter, interruption):
    step_fn = compile_step(config, models, mesh)
    key = jax.random.key(config.seed)
    step, last = int(state.step), config.run.steps
    reporter.begin(step)
    pending = None
    while step < last and not interruption.is_set():
        batch = put_batch(mesh, next(batches))
        state, metrics = step_fn(state, batch, key)
        step += 1
        # The metrics of a step are read while the next one runs.
        if pending is not None:
            reporter.step(*pending)
        pending = (step, metrics)
        if step % config.run.checkpoint_every == 0 and step < last:
            checkpoints.save(state, batches.get_state())
        if step % config.run.sample_every == 0 and step < last:
            reporter.samples(step, state)
    if pending is not None:
        reporter.step(*pending)
    checkpoints.save(state, batches.get_state())
    reporter.samples(step, state)
    if step < last:
        reporter.say(f"stopped at step {step} of {last}, saved; run the same command to go on")
        return INTERRUPTED
    reporter.say(f"done: {step} steps")
    return 0


def compile_step(config: ConfigDict, models, mesh):
    """The jitted `step(state, batch, key) -> (state, metrics)`: draws, then the pure train step.

    The draws of step n follow from (key, n) alone, so a continued run repeats none and skips
    none. The state is donated.
    """
    train_step = make_train_step(
        models, build_objective(config), build_optimizers(config), ema_decay=config.ema_decay
    )
    shape = latent_shape(config, models)

    def step(state, batch, key):
        draws = sample_draws(
            jax.random.fold_in(key, state.step),
            config.batch_size,
            shape,
            interpolant=config.objective.interpolant,
            weighting=config.time.weighting,
            label_drop=config.sit.label_drop,
        )
        draws = jax.lax.with_sharding_constraint(draws, over_batch(mesh))
        return train_step(state, batch, draws)

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def _initial_state(config, models, source):
    """The state at step 0, its latent statistics measured where none came with the VAE."""

    def measure(vae):
        if config.data.source == latents.KIND:
            return latents.statistics_of(source.manifest)
        return latent_moments(models.vae, vae, source, config.batch_size)

    state = init_state(config, models, measure)
    if config.data.source == latents.KIND:  # of one VAE: the configuration may name another
        latents.check_for_training(
            source,
            fingerprint(state.params["vae"]),
            tuple(models.teachers),
            latent_shape(config, models),
        )
    return state


def _continued(config, models, mesh, checkpoints, batches):
    """The newest checkpoint's state on the devices; `batches` go on where it stood."""
    sharding = replicated(mesh)
    template = state_template(config, models, sharding)
    state, data_state = checkpoints.restore(template)
    # A run that was imported brings no teachers and no LPIPS: their files do.
    missing = template.frozen.keys() - state.frozen.keys()
    frozen = jax.device_put(load_frozen(config, models, sorted(missing)), sharding)
    batches.set_state(data_state)
    print(f"going on from step {int(state.step)}")
    return state.replace(frozen={**state.frozen, **frozen})


class Reporter:
    """What a run shows: progress bar, TensorBoard scalars, sample grids."""

    def __init__(self, config, models, workdir, writer, progress):
        self._config, self._models, self._workdir = config, models, workdir
        self._writer, self._progress = writer, progress
        self._bar = None
        self._generate = None
        if models.sit is not None:
            sampler = make_sampler(config, steps=config.run.sample_steps)
            self._generate = make_generate(models.sit, models.vae, sampler)

    def begin(self, step: int) -> None:
        """Start the progress bar at `step`."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=self._config.run.steps,
            initial=step,
            unit="step",
            desc=self._config.name or "training",
            disable=not self._progress,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        )
        self._clock, self._clock_step = time.perf_counter(), step

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take one step's metrics; waits until the step is done."""
        jax.block_until_ready(metrics)
        self._bar.update()
        if step % self._config.run.log_every and step != self._config.run.steps:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"step {step}: {name} is {value}; the last checkpoint is the state to go back "
                    "to, with a lower learning rate or config.dtype float32"
                )
        now = time.perf_counter()
        images = (step - self._clock_step) * self._config.batch_size
        values["images_per_second"] = images / (now - self._clock)
        self._clock, self._clock_step = now, step
        self._writer.scalars(step, values)
        shown = {name: f"{values[name]:.3f}" for name in SHOWN if name in values}
        self._bar.set_postfix({"images/s": f"{values['images_per_second']:.0f}", **shown})

    def samples(self, step: int, state) -> None:
        """Write a grid of samples from the moving average, ten a class for the first classes."""
        if self._generate is None or jax.process_index() != 0:
            return
        classes = min(10, self._config.data.num_classes)
        labels = np.repeat(np.arange(classes, dtype=np.int32), 8)
        key = jax.random.key(self._config.seed)
        started = time.perf_counter()
        images = self._generate(sampling_weights(state), key, np.arange(len(labels)), labels)
        grid = class_grid(np.asarray(images), labels, [str(c) for c in range(classes)], 8)
        save_png(self._workdir / "samples" / f"{step:07d}.png", grid)
        self._writer.image(step, "samples", grid)
        self._clock += time.perf_counter() - started  # sampling is not training speed

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self._bar.clear()
        print(text)

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def catch_signals():
    """An event that SIGINT or SIGTERM sets; the second signal has its usual effect."""
    requested = threading.Event()
    previous = {}

    def handle(number, frame):
        requested.set()
        for received, handler in previous.items():
            signal.signal(received, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
