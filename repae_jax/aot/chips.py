"""The published performance of accelerators."""

import dataclasses
import math

from repae_jax.errors import UserError
from repae_jax.utils.schema import as_whole


@dataclasses.dataclass(frozen=True)
class Chip:
    """The performance of one accelerator.

    Attributes:
      flops: dense bfloat16 operations per second.
      memory: memory size in bytes.
      bandwidth: memory bandwidth in bytes per second.
      links: total bandwidth of all links to other chips in one direction, bytes per second.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, with the inter-chip bandwidths (2400, 1600, 4800
# Gbit/s; 800 GB/s in both directions) converted to bytes per second in one direction. Memories of
# "16 GB" and "32 GB" are GiB; programs may use about 98 % of them.
TPUS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}


# The data sheets of the SXM modules: dense operations, NVLink's 900 GB/s in both directions. The
# memory size is the one that the driver reports.
GPUS = {
    "h100": Chip(989.4e12, 84929347584, 3.35e12, 450e9),
    "h200": Chip(989.4e12, 151397597184, 4.8e12, 450e9),
}


def parse_topology(text: str) -> tuple[Chip, int]:
    """Parse a topology; returns the chip and the number of chips.

    Args:
      text: a TPU slice such as "v5e:16x16" or "v5p:4x4x8", or GPUs such as "h200:8".

    Raises:
      UserError: the topology is unknown.
    """
    kind, _, shape = text.partition(":")
    sides = shape.split("x")
    chip = {**TPUS, **GPUS}.get(kind)
    if (
        chip is None
        or not all(as_whole(side) for side in sides)
        or (kind in GPUS and len(sides) > 1)
    ):
        raise UserError(
            f"--topology is {text!r}: give a TPU of {', '.join(TPUS)} and the shape of its slice, "
            f"such as v5e:16x16 or v5p:4x4x8, or one of {', '.join(GPUS)} and how many in one "
            "host, such as h200:8"
        )
    return chip, math.prod(map(int, sides))
