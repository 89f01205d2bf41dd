"""What the training loop adds to a step: data, metrics, TensorBoard and all, around a stub.

    python benchmarks/loop_overhead.py [--step 0.05] [--steps 300]

In the place of the compiled step stands one that is as long, and runs beside the loop as a real one
does, but needs one thread alone: small products, over and over. Compared is the time from step to
step with the time that the stub takes by itself.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

WARM_UP = 50  # steps: until all threads have started
DIGITS = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
METRICS = ("vae_loss", "reconstruction_loss", "latent_std")


def make_busy(seconds: float):
    """A compiled function of a matrix that takes about so long, on one thread."""
    products = jax.jit(
        lambda x, times: jax.lax.fori_loop(0, times, lambda _, x: jnp.tanh(x @ x), x)
    )
    x, times = jnp.eye(32), 1000
    for _ in range(3):
        jax.block_until_ready(products(x, times))
        start = time.perf_counter()
        jax.block_until_ready(products(x, times))
        times = int(times * seconds / (time.perf_counter() - start))
    return lambda x: products(x, times)


def bare(busy, steps: int) -> float:
    """Seconds of one call where nothing else is done: the next one waits for the one before."""
    x = jax.block_until_ready(busy(jnp.eye(32)))
    start = time.perf_counter()
    for _ in range(steps):
        x = busy(x)
    jax.block_until_ready(x)
    return (time.perf_counter() - start) / steps


def make_stub(busy, calls: list[float]):
    """A step whose metrics are there when `busy` is done; notes when it is called."""
    after = jax.jit(lambda x: {name: 1.0 + 0.0 * x[0, 0] for name in (*METRICS, "skipped", "stop")})
    x = jnp.eye(32)

    def step(state, batch, key, requests):
        nonlocal x
        calls.append(time.perf_counter())
        x = busy(x)
        metrics = after(x)
        return state, metrics | {"skipped": metrics["skipped"] - 1, "stop": metrics["stop"] - 1}

    return step


def main() -> None:
    """Train with the stub, print the overhead."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    options = parser.parse_args()
    from repae_jax.config.overrides import read_config
    from repae_jax.training.default_hooks import default_hooks
    from repae_jax.training.loop import train
    from repae_jax.training.program import Program

    calls: list[float] = []
    busy = make_busy(options.step)
    alone = [bare(busy, options.steps)]
    Program.step = staticmethod(make_stub(busy, calls))
    never = 10 * options.steps
    keys = dict(steps=options.steps, log_every=10, sample_every=never, checkpoint_every=never)
    words = [f"--config.run.{key}={value}" for key, value in keys.items()]
    words.append(f"--config.data.workers={options.workers}")
    config = read_config(f"{DIGITS}:vae", words)
    with tempfile.TemporaryDirectory() as folder:
        train(config, pathlib.Path(folder) / "run", make_hooks=default_hooks, progress=False)
    alone.append(bare(busy, options.steps))
    periods = [after - before for before, after in itertools.pairwise(calls[WARM_UP:])]
    period, step = statistics.fmean(periods), statistics.fmean(alone)
    print(
        f"{len(periods)} steps, batches of {config.batch_size}: {1e3 * period:.2f} ms in the loop "
        f"(median {1e3 * statistics.median(periods):.2f}, most {1e3 * max(periods):.2f}); alone "
        f"{1e3 * alone[0]:.2f} ms before and {1e3 * alone[1]:.2f} after: "
        f"{100 * (period / step - 1):+.2f} %"
    )


if __name__ == "__main__":
    main()
