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


def spatial_norm(tokens: jax.Array, gamma: float) -> jax.Array:
    """Tokens (B, N, D) without gamma times their mean over positions, divided by their deviation.

    (f - gamma mean_N f) / (std_N f + 1e-6) for each image and feature, with the unbiased deviation
    over the N positions (iREPA, arXiv 2512.10794, section 4).

    Args:
      tokens: a teacher's patch tokens.
      gamma: in [0, 1].
    """
    tokens = tokens.astype(jnp.float32)
    mean = tokens.mean(1, keepdims=True)
    deviation = jnp.std(tokens, axis=1, keepdims=True, ddof=1)
    return (tokens - gamma * mean) / (deviation + 1e-6)


def dispersive_loss(tokens: jax.Array) -> jax.Array:
    """Dispersive Loss of tokens (B, N, D): log mean_ij exp(-|z_i - z_j|^2 / (N D)); scalar <= 0.

    z_i holds all tokens of image i, and the mean runs over all B^2 pairs, each image with itself
    among them (arXiv 2506.09027, section 3, with the scale of its authors' code).
    """
    z = tokens.astype(jnp.float32).reshape(tokens.shape[0], -1)
    z = z - z.mean(0)  # distances stay, and the products below cancel less
    squares = jnp.sum(z * z, axis=1)
    distances = squares[:, None] + squares - 2.0 * (z @ z.T)
    distances = jnp.where(jnp.eye(len(z), dtype=bool), 0.0, jnp.maximum(distances, 0.0))
    return jax.nn.logsumexp(-distances / z.shape[1]) - 2.0 * jnp.log(len(z))
