"""A sequence of equal blocks as one loop, so that the compiler compiles one block."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def scan_blocks(blocks: Sequence[nn.Module], h: jax.Array, *inputs: Any, dtype: Any) -> jax.Array:
    """`h = block(h, *inputs)` for every block; same parameters and results as without the loop.

    Args:
      blocks: bound modules of one class and size, with no collection but "params".
      h: the input of the first block, in the type that the blocks return.
      inputs: further inputs, the same for all blocks.
      dtype: the type of the matrix products; parameters with more than one axis are stacked in
        it, which keeps the stack small.

    Returns:
      the output of the last block.
    """

    def cast(leaf):
        return leaf.astype(dtype) if leaf.ndim > 1 else leaf

    params = [jax.tree.map(cast, block.variables["params"]) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    block = blocks[0].clone(parent=None)

    def apply(h, params):
        return block.apply({"params": params}, h, *inputs), None

    return jax.lax.scan(apply, h, stacked)[0]
