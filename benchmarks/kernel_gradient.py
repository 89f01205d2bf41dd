"""Speed of a convolution, and of its kernel's gradient both ways (models/convolution.py).

    python benchmarks/kernel_gradient.py [--batch-size 4]

prints GFLOP/s at the shapes of f8d4's layers, one compiled program each.
"""

import argparse
import time

import jax

from repae_jax.models.convolution import KERNEL_GRADIENTS
from repae_jax.models.layers import conv

SHAPES = [(128, 128), (64, 256), (32, 512), (16, 512)]  # side and channels of f8d4 at 128 x 128


def seconds(function, *arguments) -> float:
    """The quickest of three calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    names = list(KERNEL_GRADIENTS)
    print(f"GFLOP/s on {jax.devices()[0].device_kind}\n")
    print("| input | forward | kernel gradient: " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * (1 + len(names)), flush=True)
    for side, channels in SHAPES:
        x = jax.random.normal(jax.random.key(0), (options.batch_size, side, side, channels))
        work = 2 * 9 * channels**2 * x[..., 0].size / 1e9
        cells = []
        for name in names:
            layer = conv(channels, channels, 3, bias=False, kernel_gradient=name)
            variables = layer.init(jax.random.key(0), x)
            if not cells:
                cells.append(work / seconds(jax.jit(layer.apply), variables, x))

            def gradient(variables, x, layer=layer):
                # the upstream gradient is x itself: as large, and there already
                return jax.vjp(lambda variables: layer.apply(variables, x), variables)[1](x)

            cells.append(work / seconds(jax.jit(gradient), variables, x))
        shape = f"{options.batch_size} x {side} x {side} x {channels}"
        print(f"| {shape} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
