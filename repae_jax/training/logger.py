"""The log of a run: progress bar, lines of text, scalars and images for TensorBoard and others."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

import numpy as np
from ml_collections import ConfigDict

from repae_jax.runs.metrics import MetricWriter
from repae_jax.runs.wandb_writer import WandbWriter
from repae_jax.utils import background

SHOWN = ("denoising_loss", "proj_loss", "reconstruction_loss")  # metrics beside the progress bar


class Logger:
    """Writes a run's log; the `Monitor` alone acts on metrics.

    Only the first process of a job writes; all may make the same calls.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, *, first: bool, progress: bool):
        """Prepare the log; before `begin` it accepts only lines of text.

        Args:
          config: the run's configuration.
          workdir: the run's folder.
          first: whether this process writes.
          progress: whether to show a bar.
        """
        self._config, self._workdir = config, workdir
        self._first, self._progress = first, progress
        self._bar = None
        self._opened: Future[MetricWriter] | None = None
        self._clock, self._clock_step = time.perf_counter(), 0

    def begin(self, step: int) -> None:
        """Open the progress bar and the writers, after `step` completed steps.

        A thread opens TensorBoard's, which imports TensorFlow for seconds, while the step compiles.

        Raises:
          UserError: Weights & Biases, if `config.run.wandb` names a project, is not logged in.
        """
        from tqdm import tqdm

        if self._first:
            config = self._config
            others = [WandbWriter(self._workdir, config)] if config.run.wandb else []
            self._opened = background.start(MetricWriter, self._workdir, step, others=others)
        self._bar = tqdm(
            total=self._config.run.steps,
            initial=step,
            unit="step",
            desc=self._config.name or "training",
            disable=not (self._progress and self._first),
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        )
        self._clock, self._clock_step = time.perf_counter(), step

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step's metrics, and the images per second since the last call."""
        now = time.perf_counter()
        images = (step - self._clock_step) * self._config.batch_size
        speed = images / (now - self._clock)
        self._clock, self._clock_step = now, step
        self.scalars(step, {**values, "images_per_second": speed})
        shown = {name: f"{values[name]:.3f}" for name in SHOWN if name in values}
        self._bar.set_postfix({"images/s": f"{speed:.0f}", **shown})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars; NaN and infinite values are left out."""
        if self._opened is not None:
            finite = {name: value for name, value in values.items() if np.isfinite(value)}
            self._opened.result().scalars(step, finite)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image, uint8 (H, W, 3)."""
        if self._opened is not None:
            self._opened.result().image(step, name, image)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self._first:
            if self._bar is not None:
                self._bar.clear()
            print(text, flush=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the `with` block from the training speed."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def close(self) -> None:
        """Close the progress bar, and write all pending events."""
        if self._bar is not None:
            self._bar.close()
        if self._opened is not None:
            self._opened.result().close()
