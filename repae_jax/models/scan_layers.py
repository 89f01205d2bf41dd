"""Equal blocks one after the other, as one compiled loop: the compiler sees one of them."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def scan_blocks(blocks: Sequence[nn.Module], h: jax.Array, *inputs: Any, dtype: Any) -> jax.Array:
    """`h = block(h, *inputs)` for every block; same parameters and results as without the loop.

    Args:
      blocks: bound modules of one class and size, with nothing but parameters.
      h: what runs through them, in the type that they return.
      inputs: what all of them take besides.
      dtype: of their matrix products; parameters of more than one axis are stacked in it, so that
        what is stacked is small.
    """

    def used(leaf):
        return leaf.astype(dtype) if leaf.ndim > 1 else leaf

    params = [jax.tree.map(used, block.variables["params"]) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    block = blocks[0].clone(parent=None)

    def apply(h, params):
        return block.apply({"params": params}, h, *inputs), None

    return jax.lax.scan(apply, h, stacked)[0]
