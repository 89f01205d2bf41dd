"""What the training loop adds to a step: data, metrics, TensorBoard and all, around a stub.

    python benchmarks/loop_overhead.py [--step 0.05] [--steps 300]

In place of the compiled step stands one that only sleeps, on the loop's own thread. A real one
runs on the device while the loop prepares the next, so this is more than what a run loses.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time

import jax.numpy as jnp

WARM_UP = 50  # steps: until all threads have started
DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"


def make_stub(seconds: float, calls: list[tuple[float, float]]):
    """A step that sleeps, and notes when it was called and when it returned."""
    metrics = {name: jnp.float32(1.0) for name in ("vae_loss", "reconstruction_loss", "latent_std")}
    metrics |= {"skipped": jnp.float32(0.0), "stop": jnp.int32(0)}

    def step(state, batch, key, requests):
        start = time.perf_counter()
        time.sleep(seconds)
        calls.append((start, time.perf_counter()))
        return state, metrics

    return step


def main() -> None:
    """Train with the stub, print the overhead."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    options = parser.parse_args()
    from repae_jax.overrides import read_config
    from repae_jax.training.loop import train
    from repae_jax.training.program import Program

    calls: list[tuple[float, float]] = []
    Program.step = staticmethod(make_stub(options.step, calls))
    never = 10 * options.steps
    keys = dict(steps=options.steps, log_every=10, sample_every=never, checkpoint_every=never)
    words = [f"--config.run.{key}={value}" for key, value in keys.items()]
    words.append(f"--config.data.workers={options.workers}")
    config = read_config(f"{DIGITS}:vae", words)
    with tempfile.TemporaryDirectory() as folder:
        train(config, pathlib.Path(folder) / "run", progress=False)
    counted = calls[WARM_UP:]
    slept = statistics.fmean(end - start for start, end in counted)
    between = [after[0] - before[1] for before, after in itertools.pairwise(counted)]
    added = statistics.fmean(between)
    print(
        f"{len(counted)} steps of {1e3 * slept:.2f} ms, batches of {config.batch_size}; "
        f"between two {1e3 * added:.2f} ms on average "
        f"(median {1e3 * statistics.median(between):.2f}, most "
        f"{1e3 * max(between):.2f}): {100 * added / slept:.2f} %"
    )


if __name__ == "__main__":
    main()
