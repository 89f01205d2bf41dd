"""Representation alignment: the REPA loss (arXiv 2410.06940, equation 8; REPA-E, equation 2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def unit(x: jax.Array, minimum: float = 1e-12) -> jax.Array:
    """Vectors (..., D) divided by max(norm, minimum), float32.

    At a zero vector the gradient is that of x / minimum, as in PyTorch's `normalize`.
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    safe = jnp.where(square > 0, square, 1.0)
    norm = jnp.where(square > 0, jnp.sqrt(safe), 0.0)
    return x / jnp.maximum(norm, minimum)


def alignment_loss(projections: Sequence[jax.Array], teachers: Sequence[jax.Array]) -> jax.Array:
    """Mean over teachers, images and tokens of -cos(projected token, teacher token), in [-1, 1].

    Args:
      projections: one (B, N, D_k) per teacher, from the backbone's projection heads.
      teachers: the teachers' patch tokens, (B, N, D_k) each.

    Raises:
      ValueError: the shapes differ, for example because the two token grids differ.
    """
    losses = []
    for projection, teacher in zip(projections, teachers, strict=True):
        if projection.shape != teacher.shape:
            raise ValueError(
                f"projected tokens {projection.shape} and teacher tokens {teacher.shape} differ: "
                "the backbone's grid and the teacher's must have the same number of tokens"
            )
        losses.append(-jnp.sum(unit(projection) * unit(teacher), axis=-1).mean())
    return jnp.stack(losses).mean()
