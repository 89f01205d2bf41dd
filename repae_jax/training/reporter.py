"""What a run shows of itself: progress bar, TensorBoard scalars, sample grids, alarms."""

import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np

from repae_jax.parallel.mesh import put, replicated
from repae_jax.parallel.multihost import Processes
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.going_back import way_back
from repae_jax.runs.metrics import MetricWriter
from repae_jax.runs.open_run import make_sampler, sampling_weights
from repae_jax.runs.state import TrainState
from repae_jax.sampling.generate import make_generate
from repae_jax.training.monitor import Alarms
from repae_jax.training.online import Comparison, OnlineEvaluation
from repae_jax.training.program import Program
from repae_jax.utils.figures import class_grid, save_png

SHOWN = ("denoising_loss", "proj_loss", "reconstruction_loss")
_CLASSES, _EACH = 10, 8  # of a sample grid


class Reporter:
    """Shows a run; of several processes the first does, all must make the same calls."""

    def __init__(
        self,
        program: Program,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        processes: Processes,
        step: int,
        progress: bool,
        comparison: Comparison | None = None,
    ):
        """Show it from `step` on."""
        self._program, self._config, self._workdir = program, program.config, workdir
        self._first, self._progress = processes.first, progress and processes.first
        self._checkpoints, self._processes = checkpoints, processes
        self._writer = MetricWriter(workdir, step) if processes.first else None
        self._bar = None
        run = self._config.run
        self._alarms = Alarms(run.max_skipped, run.on_collapse, self.say, self._way_back)
        self._generate = self._online = None
        models = program.models
        if models.backbone is not None:
            sampler = make_sampler(self._config, steps=run.sample_steps)
            self._generate = make_generate(
                models.backbone, models.tokenizer, sampler, mesh=program.mesh
            )
        if comparison is not None:
            self._online = OnlineEvaluation(
                program, workdir, self._generate, self._at_once, comparison
            )

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

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> bool:
        """Take one step's metrics, waiting until it is done; returns whether to stop.

        Raises:
          UserError: too many steps were not finite, or something collapsed.
        """
        seen = jax.device_get({name: metrics[name] for name in ("skipped", "stop")})

        def read():
            values = jax.device_get({k: v for k, v in metrics.items() if k not in seen})
            return {name: float(value) for name, value in values.items()}

        self._bar.update()
        self._alarms.step(step, bool(seen["skipped"]), read)
        if not self.skipping:
            self._checkpoints.follow(step, read)
        if step % self._config.run.log_every == 0 or step == self._config.run.steps:
            self._log(step, read())
        return bool(seen["stop"])

    @property
    def skipping(self) -> bool:
        """Whether the last step changed nothing: a state that should not be saved."""
        return self._alarms.skipping

    def _way_back(self, before):
        step = self._checkpoints.proven_step(before)
        return way_back(self._workdir, self._config, step, self._processes.count)

    def _log(self, step, values):
        now = time.perf_counter()
        images = (step - self._clock_step) * self._config.batch_size
        values["images_per_second"] = images / (now - self._clock)
        values["skipped_steps"] = float(self._alarms.skipped)
        self._clock, self._clock_step = now, step
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        if self._writer is not None:
            self._writer.scalars(step, finite)
        shown = {name: f"{values[name]:.3f}" for name in SHOWN if name in values}
        self._bar.set_postfix({"images/s": f"{values['images_per_second']:.0f}", **shown})
        self._alarms.look(step, values)

    def samples(self, step: int, state: TrainState) -> None:
        """Write a grid of samples from the moving average, some of each of the first classes.

        Raises:
          UserError: they are all alike or not finite, and the configuration wants to stop there.
        """
        if self._generate is None:
            return
        started = time.perf_counter()
        classes = min(_CLASSES, self._config.data.num_classes)
        labels = np.repeat(np.arange(classes, dtype=np.int32), _EACH)
        padded = np.resize(labels, self._at_once)
        inputs = put((np.arange(len(padded)), padded), replicated(self._program.mesh))
        made = self._generate(sampling_weights(state), self._program.key(), *inputs)
        images, faults = (np.asarray(part)[: len(labels)] for part in made)
        if self._first:
            grid = class_grid(images, labels, [str(c) for c in range(classes)], _EACH)
            save_png(self._workdir / "samples" / f"{step:07d}.png", grid)
            self._writer.image(step, "samples", grid)
        self._alarms.look_at_faults(step, faults)
        if not faults.any():
            self._alarms.look_at_samples(step, images)
        self._clock += time.perf_counter() - started  # sampling is not training speed

    @property
    def _at_once(self):
        """Images that are generated at a time, the grid's: one shape is compiled for all."""
        size = self._program.mesh.size
        count = _EACH * min(_CLASSES, self._config.data.num_classes)
        return -(-count // size) * size

    def evaluate(self, step: int, state: TrainState) -> None:
        """Measure the moving average, if the configuration asks for it."""
        if self._online is None:
            return
        started = time.perf_counter()
        figures = self._online(state)
        if self._first:
            self._writer.scalars(step, {f"evaluation/{k}": v for k, v in figures.items()})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        nothing = "the samples are all alike or not finite, nothing is measured"
        self.say(f"step {step}: {shown or nothing}")
        self._clock += time.perf_counter() - started

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self._first:
            if self._bar is not None:
                self._bar.clear()
            print(text, flush=True)

    def close(self) -> None:
        """End the progress bar, and write what is left."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
