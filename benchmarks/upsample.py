"""Up-sampling and the convolution behind it: one after the other, and as one (models/upsample.py).

    python benchmarks/upsample.py [--batch-size 4]          # milliseconds on the device here
    python benchmarks/upsample.py --topology v5e:2x2        # what the TPU compiler counts

at the shapes of f8d4 for 128 x 128 images, or for 256 x 256 ones by the TPU compiler, which needs
no TPU, but libtpu.
"""

import argparse
import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from repae_jax.models.convolution import conv
from repae_jax.models.upsample import UpsampleConv
from repae_jax.utils import process_env

SHAPES = [(16, 512), (32, 512), (64, 256)]  # side before, and channels, of f8d4 at 128 x 128


class Apart(nn.Module):
    """Each value four times, then a 3x3 convolution."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 2H, 2W, C)."""
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return conv(self.channels, self.channels, 3, dtype=self.dtype)(x)


def passes(module: nn.Module):
    """Its forward pass, its gradient for the image, and for the parameters."""

    def image(variables, x, g):
        return jax.vjp(lambda x: module.apply(variables, x), x)[1](g)

    def parameters(variables, x, g):
        return jax.vjp(lambda variables: module.apply(variables, x), variables)[1](g)

    return {
        "forward": lambda variables, x, g: module.apply(variables, x),
        "image": image,
        "parameters": parameters,
    }


def milliseconds(function, *arguments) -> float:
    """The quickest of three calls, after one that compiles."""
    function = jax.jit(function)
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(batch: int) -> None:
    """Time both on the device here, float32."""
    print(f"{jax.devices()[0].device_kind}, batch {batch}, float32, ms\n")
    print("| input | | forward | image's gradient | parameters' |\n" + "| --- " * 5 + "|")
    for side, channels in SHAPES:
        key = jax.random.key(0)
        x = jax.random.normal(key, (batch, side, side, channels))
        for name, module in forms(channels, jnp.float32).items():
            variables = module.init(key, x)
            g = module.apply(variables, x)
            cells = [milliseconds(f, variables, x, g) for f in passes(module).values()]
            line = " | ".join(f"{cell:.0f}" for cell in cells)
            print(f"| {side} x {side} x {channels} | {name} | {line} |", flush=True)


def count(batch: int, topology: str) -> None:
    """What the TPU compiler counts of forward and backward pass, bfloat16."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    sharding = SingleDeviceSharding(device)
    print(f"{device.device_kind}, batch {batch}, bfloat16, forward and backward\n")
    print("| input | | TFLOP | GB moved |\n" + "| --- " * 4 + "|")
    for side, channels in SHAPES:
        side *= 2  # of images of 256 x 256
        for name, module in forms(channels, jnp.bfloat16).items():
            x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.bfloat16)
            variables = jax.eval_shape(module.init, jax.random.key(0), x)
            g = jax.eval_shape(module.apply, variables, x)

            def both(variables, x, g, module=module):
                y, pull = jax.vjp(module.apply, variables, x)
                return y, pull(g)

            lowered = jax.jit(both, in_shardings=sharding).lower(variables, x, g)
            costs = lowered.compile().cost_analysis()
            line = f"{costs['flops'] / 1e12:.2f} | {costs['bytes accessed'] / 1e9:.2f}"
            print(f"| {side} x {side} x {channels} | {name} | {line} |", flush=True)


def forms(channels: int, dtype: jnp.dtype) -> dict[str, nn.Module]:
    """Both modules."""
    return {
        "apart": Apart(channels, dtype),
        "as one": UpsampleConv(channels, channels, dtype=dtype),
    }


def main() -> None:
    """Measure or count, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--topology", help="of a TPU slice, to compile for; nothing is run")
    options = parser.parse_args()
    if options.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        count(options.batch_size, options.topology)
    else:
        process_env.prepare()  # as the command line does
        measure(options.batch_size)


if __name__ == "__main__":
    main()
