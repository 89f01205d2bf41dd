"""What accelerators can do, as their makers publish it."""

import dataclasses

from repae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: dense bfloat16 operations per second.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      links: what all links to other chips carry in one direction, bytes per second.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: the inter-chip bandwidths there (2400, 1600,
# 4800 Gbit/s; 800 GB/s in both directions) as bytes per second in one. Memories of "16 GB" and
# "32 GB" are GiB; programs may use about 98 % of them.
TPUS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9),
}


def parse_topology(text: str) -> tuple[Chip, int]:
    """The chip, and how many there are, of a slice such as "v5e:16x16" or "v5p:4x4x8".

    Raises:
      UserError: it names none.
    """
    kind, _, shape = text.partition(":")
    sides = shape.split("x")
    if kind not in TPUS or not all(side.isdigit() and int(side) for side in sides):
        raise UserError(
            f"--topology is {text!r}: give a TPU of {', '.join(TPUS)} and the shape of its slice, "
            "such as v5e:16x16 or v5p:4x4x8"
        )
    count = 1
    for side in sides:
        count *= int(side)
    return TPUS[kind], count
