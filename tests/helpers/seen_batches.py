"""`python -m repae_jax` whose train step only notes what it is given: images, captions and drops.

  SEEN=FILE [DIE_AT=STEP] python seen_batches.py train ...

The first process appends one line of JSON a step: the step's number, and checksums over the batch
of each row's number times its image, its caption's ids and its coin. After step DIE_AT the process
kills itself with -9.
"""

import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp

from repae_jax.cli import main
from repae_jax.training import loop, program

NAMES = ("images", "captions", "drops")


def make_train_step(*_, **__):
    """In place of `training.step.make_train_step`."""

    def step(state, batch, draws):
        rows = batch["image"], batch["caption_ids"], draws.condition_drop
        metrics = {name: _checksum(values) for name, values in zip(NAMES, rows, strict=True)}
        return state.replace(step=state.step + 1), {**metrics, "skipped": jnp.zeros((), bool)}

    return step


def _checksum(rows):
    """A number below 2^20, which float32 represents; integers, so that devices change nothing."""
    rows = rows.reshape(len(rows), -1).astype(jnp.uint32)
    weights = 2 * jnp.arange(rows.shape[1], dtype=jnp.uint32) + 1
    of_row = (rows * weights).sum(1) * 40503 + 1
    number = jnp.arange(len(rows), dtype=jnp.uint32) * 2654435 + 1
    return (of_row * number).sum() % (1 << 20)


class Noting(loop.MetricsReport):
    """Notes each step's metrics once, and kills the process after DIE_AT."""

    def __call__(self, metrics):
        new = metrics is not None and metrics.step != self._last
        super().__call__(metrics)
        if not new:
            return
        if jax.process_index() == 0:
            line = {"step": metrics.step, **{name: metrics.values[name] for name in NAMES}}
            with pathlib.Path(os.environ["SEEN"]).open("a") as file:
                file.write(json.dumps(line) + "\n")
        if metrics.step == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    program.make_train_step, loop.MetricsReport = make_train_step, Noting
    sys.exit(main(sys.argv[1:]))
