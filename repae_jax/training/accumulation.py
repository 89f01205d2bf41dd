"""Gradient accumulation: the gradients of a large batch, one micro-batch after another."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from repae_jax.runs.state import TrainState
from repae_jax.training.noise import Draws


def accumulate_gradients(gradients, micro_batches: int):
    """Wrap a gradient function so that it averages over the micro-batches of a batch.

    Gradients, metrics and statistics become means over the micro-batches. They equal the full
    batch's for all terms that treat each image separately, including terms that use running
    statistics. Where LatentNorm and the discriminator's BatchNorm normalize by batch statistics,
    these are the micro-batch's; the running statistics move once per step, towards the means over
    the micro-batches. Dispersive Loss compares the images of a micro-batch with each other.
    Micro-batch k of n has the images k, k + n, k + 2 n, ..., so that every device holds an equal
    share of each.

    Args:
      gradients: (trained, state, batch, draws) -> (grads, (metrics, batch_stats)).
      micro_batches: number of micro-batches, which divides the batch size; 1 returns `gradients`.
    """
    if micro_batches == 1:
        return gradients

    def split(leaf):
        return leaf.reshape(-1, micro_batches, *leaf.shape[1:]).swapaxes(0, 1)

    def over_micro_batches(
        trained, state: TrainState, batch: Mapping[str, jax.Array], draws: Draws
    ):
        def add(sums, micro_batch):
            return jax.tree.map(jnp.add, sums, gradients(trained, state, *micro_batch)), None

        divided = jax.tree.map(split, (dict(batch), draws))
        first = jax.tree.map(lambda leaf: leaf[0], divided)
        shapes = jax.eval_shape(gradients, trained, state, *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, divided)
        return jax.tree.map(lambda leaf: leaf / micro_batches, sums)

    return over_micro_batches
