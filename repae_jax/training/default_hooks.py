"""The hooks of the `train` command: checkpoints, sample grids and evaluation."""

import jax
import numpy as np

from repae_jax.config.modules import build_sampler
from repae_jax.evaluation.samples_page import write_samples_page
from repae_jax.parallel.mesh import place, place_key, replicated
from repae_jax.runs.captions import grid_inputs
from repae_jax.runs.going_back import SAMPLES, SAMPLES_PAGE
from repae_jax.runs.open_run import sampling_key, sampling_weights
from repae_jax.sampling.generate import Generate, make_generate
from repae_jax.training.hooks import Hook, RunContext, StepEnd, StepMetrics
from repae_jax.training.online import OnlineEvaluation
from repae_jax.utils.figures import class_grid, save_png

_ROWS, _EACH = 10, 8  # classes or captions in a sample grid, and samples of each


def default_hooks(run: RunContext) -> list[Hook]:
    """Make the hooks that save, draw samples and evaluate at the configuration's intervals.

    Raises:
      UserError: files or images for the evaluation are missing or damaged.
    """
    hooks: list[Hook] = [SaveCheckpoints(run)]
    config, models, mesh = run.config, run.models, run.mesh
    if models.backbone is None:
        return hooks
    sampler = build_sampler(config, steps=config.run.sample_steps)
    generate = make_generate(models, sampler, mesh=mesh)
    key = place_key(mesh, sampling_key(config))
    hooks.append(DrawSamples(run, generate, key, f"{sampler.method} in {sampler.steps} steps"))
    if config.evaluation.every:
        evaluation = OnlineEvaluation(
            config, models, mesh, key, run.data, generate, batch_size=grid_batch(run)
        )
        hooks.append(Evaluate(run, evaluation))
    return hooks


class SaveCheckpoints:
    """Saves every `config.run.checkpoint_every` steps and at the end.

    A checkpoint that is due at a skipped step is saved at the next completed one. The metrics of a
    completed step prove the checkpoint before it (see `Record`).
    """

    def __init__(self, run: RunContext):
        self._checkpoints, self._every = run.checkpoints, run.config.run.checkpoint_every
        self._before: StepMetrics | None = None  # the last step's metrics, still unread
        self._due: int | None = None  # the step at which the next checkpoint was due

    def __call__(self, end: StepEnd) -> None:
        """Save if a checkpoint is due.

        Raises:
          UserError: the checkpoint cannot be written.
        """
        if end.done:
            return
        self._follow(self._before)
        self._before = end.metrics
        if self._due is None and (end.ending or end.step % self._every == 0):
            self._due = end.step
        if self._due is None:
            return
        end.report(end.metrics)
        if not end.metrics.skipped:
            self._follow(end.metrics)
            self._before = None
            self._checkpoints.save(end.step, end.state, end.data_state, due=self._due)
            self._due = None

    def _follow(self, metrics):
        if metrics is not None and not metrics.skipped:
            self._checkpoints.follow(metrics.step, lambda: metrics.values)


class DrawSamples:
    """Draws a grid of samples of the first classes or captions from the moving average.

    `samples.html` in the work directory shows the newest grids.
    """

    def __init__(self, run: RunContext, generate: Generate, key: jax.Array, how: str):
        """Prepare the inputs of the grids; `how` says for the page how `generate` samples."""
        self._run, self._generate, self._key, self._how = run, generate, key, how
        self._told = False
        self._inputs, self._rows, self._names = grid_inputs(
            run.config, run.data.train, _ROWS, _EACH
        )

    def __call__(self, end: StepEnd) -> None:
        """Draw a grid every `config.run.sample_every` steps and at the end; say so at the first.

        Raises:
          UserError: the samples are all alike, NaN or infinite, and `config.run.on_collapse` is
            "stop".
        """
        every = self._run.config.run.sample_every
        if not self._told and not end.done:
            self._run.logger.say(
                f"samples: {self._run.workdir / SAMPLES_PAGE}, every {every} steps"
            )
            self._told = True
        if _is_time(end, self._run, every):
            with self._run.logger.paused():
                self._draw(end)

    def _draw(self, end):
        run = self._run
        chosen = np.arange(grid_batch(run)) % len(self._rows)
        inputs = {name: values[chosen] for name, values in self._inputs.items()}
        inputs = place((np.arange(len(chosen)), inputs), replicated(run.mesh))
        made = self._generate(sampling_weights(end.state), self._key, *inputs)
        images, faults = (np.asarray(part)[: len(self._rows)] for part in made)
        if run.processes.first:
            grid = class_grid(images, self._rows, self._names, _EACH)
            save_png(run.workdir / SAMPLES / f"{end.step:07d}.png", grid)
            run.logger.image(end.step, SAMPLES, grid)
            self._write_page(renewed=not end.done)
        run.monitor.check_faults(end.step, faults)
        if not faults.any():
            run.monitor.check_samples(end.step, images)

    def _write_page(self, renewed):
        run = self._run
        of = "caption" if run.models.text_encoder is not None else "class"
        write_samples_page(
            run.workdir / SAMPLES,
            run.workdir / SAMPLES_PAGE,
            title=f"{run.config.name or 'run'}: samples",
            steps=run.config.run.steps,
            text=f"One row a {of}, drawn by {self._how} from the moving average, always from the "
            f"same noise. The run's report, python -m repae_jax report --workdir {run.workdir}, "
            "shows more.",
            renewed=renewed,
        )


class Evaluate:
    """Evaluates the moving average and logs the measures under "evaluation/"."""

    def __init__(self, run: RunContext, evaluation: OnlineEvaluation):
        self._run, self._evaluation = run, evaluation

    def __call__(self, end: StepEnd) -> None:
        """Evaluate every `config.evaluation.every` steps and at the end."""
        logger = self._run.logger
        if not _is_time(end, self._run, self._run.config.evaluation.every):
            return
        with logger.paused():
            figures = self._evaluation(end.state)
            logger.scalars(end.step, {f"evaluation/{k}": v for k, v in figures.items()})
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            nothing = "the samples are all alike or not finite, nothing is measured"
            logger.say(f"step {end.step}: {shown or nothing}")


def grid_batch(run: RunContext) -> int:
    """The batch size for all generated images of a run: one compiled shape that holds a grid."""
    size = run.mesh.size
    of_text = run.models.text_encoder is not None
    rows = len(run.data.train) if of_text else run.config.data.num_classes
    count = _EACH * min(_ROWS, rows)
    return -(-count // size) * size


def _is_time(end, run, every):
    """Whether an interval ends here; the last step's interval ends when the run is done."""
    return end.done or (end.step < run.config.run.steps and end.step % every == 0)
