"""Gradients of a batch that is too large for the memory, one micro-batch after the other."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from repae_jax.runs.state import TrainState
from repae_jax.training.noise import Draws


def accumulated(gradients, micro_batches: int):
    """The gradients, metrics and statistics of a batch as means over its micro-batches.

    Exactly the whole batch's for all terms that see each image by itself, also those that use
    running statistics. Where LatentNorm and the discriminator's BatchNorm normalise by batch
    statistics, these are of one micro-batch; the running ones move once a step, towards the means
    over the micro-batches. Micro-batch k of n has the images k, k + n, k + 2 n, ..., so that every
    device has its share of each.

    Args:
      gradients: (trained, state, batch, draws) -> (grads, (metrics, batch_stats)).
      micro_batches: into how many the batch is divided; 1 takes it at once.
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
