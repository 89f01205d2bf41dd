"""The training loop around a step that does nothing."""

import types
from collections.abc import Callable

import tiny

from repae_jax.parallel.multihost import ALONE, Processes
from repae_jax.training.default_hooks import SaveCheckpoints
from repae_jax.training.loop import _run
from repae_jax.training.monitor import Monitor


def run_stub(
    saved: dict,
    monitor: Monitor,
    metrics_of: Callable[[int], dict],
    *,
    steps: int,
    every: int,
    processes: Processes = ALONE,
    stopping=None,
    hooks=(),
) -> int:
    """Run the loop to its end; returns the exit status.

    Args:
      saved: receives for each saved step the step at which the checkpoint was due.
      monitor: the run's monitor.
      metrics_of: step -> its metrics.
      steps: of the run.
      every: steps between checkpoints.
      processes: of the job.
      stopping: stands for signals; by default none comes.
      hooks: further hooks, after that which saves.

    Raises:
      UserError: the monitor ended the run.
    """
    config = tiny.get_config()
    config.run.update(steps=steps, checkpoint_every=every)

    def one_step(state, batch, key, requests):
        step = state.step + 1
        return types.SimpleNamespace(step=step), metrics_of(step)

    checkpoints = types.SimpleNamespace(
        save=lambda step, state, data, due: saved.update({step: due}),
        follow=lambda step, metrics: None,
        latest_step=lambda: max(saved, default=None),
        wait=lambda: None,
    )
    quiet = types.SimpleNamespace(
        say=lambda line: None, advance=lambda: None, metrics=lambda step, values: None
    )
    context = types.SimpleNamespace(
        config=config, checkpoints=checkpoints, monitor=monitor, logger=quiet, processes=processes
    )
    program = types.SimpleNamespace(key=lambda: None, requests=lambda stop: None, step=one_step)
    batches = type("Batches", (), {"state": {}, "__next__": lambda self: {}})()
    stopping = stopping or types.SimpleNamespace(requested=False, note=lambda: None)
    start = types.SimpleNamespace(step=0)
    return _run(context, program, start, batches, [SaveCheckpoints(context), *hooks], stopping)
