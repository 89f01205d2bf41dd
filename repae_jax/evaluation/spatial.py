"""Measures of the spatial structure of tokens in a grid: LDS, CDS, RMSC and SRSS.

From iREPA ("What matters for Representation Alignment", arXiv 2512.10794), whose code computes them
of teachers' tokens. Tokens x_i of one image have unit vectors u_i = x_i / max(|x_i|, 1e-8), cosines
s_ij = u_i . u_j, and Manhattan distances d_ij in the grid:

  LDS (local against distant similarity)  = mean_{d_ij = 1} s_ij - mean_{d_ij >= 6} s_ij
  CDS (correlation decay slope)           = - slope of the least-squares line through the points
                                            (d, mean_{d_ij = d} s_ij), d = 1, ..., 8
  RMSC (root mean square contrast)        = sqrt(mean_i |u_i - mean_j u_j|^2)
  SRSS (semantic region self-similarity)  = mean over tokens i of the foreground of
                                            mean_{j in it, d_ij = 1} s_ij
                                            - mean_{j in the background, d_ij >= 6} s_ij

The larger each is, the more the tokens tell places apart.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MEASURES = ("lds", "cds", "rmsc")  # those without masks
FAR = 6  # the least distance of distant tokens
LONGEST = 8  # the largest distance in the line of CDS


@dataclasses.dataclass(frozen=True, eq=False)
class SpatialStructure:
    """`MEASURES` on the last axis, M, per image or as their means.

    Attributes:
      backbone: tokens after the aligned block, (times, M), before it per image (times, N, M).
      latents: the normalized latents in the backbone's patches, (M,) or (N, M).
      teachers: name -> (M,) or (N, M).
    """

    backbone: np.ndarray
    latents: np.ndarray
    teachers: Mapping[str, np.ndarray]

    def averaged(self) -> "SpatialStructure":
        """The means over images, without those where a measure is not finite; NaN if none is."""
        teachers = {name: _mean(values) for name, values in self.teachers.items()}
        return SpatialStructure(_mean(self.backbone), _mean(self.latents), teachers)


def spatial_measures(tokens: jax.Array, rows: int, columns: int) -> jax.Array:
    """`MEASURES` of each image, (B, 3) float32.

    LDS is NaN in a grid without tokens `FAR` apart, and CDS in one of fewer than two distances,
    where iREPA's code gives the local similarity, and 0.

    Args:
      tokens: (B, rows * columns, D), the grid in row-major order.
      rows, columns: of the grid.
    """
    distance = _distances(rows, columns)
    shown = [d for d in range(1, LONGEST + 1) if (distance == d).any()]
    centered = np.array(shown, np.float32) - np.float32(np.mean(shown or [0.0]))

    def of_image(x):
        u = _unit(x)
        cosines = _product(u, u)
        decay = jnp.stack([_mean_where(cosines, distance == d) for d in shown] or [jnp.nan])
        lds = decay[0] - _mean_where(cosines, distance >= FAR)
        cds = -(centered * (decay - decay.mean())).sum() / jnp.square(centered).sum()
        rmsc = jnp.sqrt(jnp.square(u - u.mean(0)).sum(-1).mean())
        return jnp.stack([lds, cds if len(shown) > 1 else jnp.nan, rmsc])

    return jax.lax.map(of_image, tokens)


def srss(tokens: jax.Array, masks: jax.Array, rows: int, columns: int) -> jax.Array:
    """SRSS of each image, (B,) float32.

    Tokens of the foreground without one of both kinds of others count nothing. NaN for an image
    where none counts, with fewer than two tokens in the foreground, or without background.

    Args:
      tokens: (B, rows * columns, D), the grid in row-major order.
      masks: (B, rows * columns), True in the foreground.
      rows, columns: of the grid.
    """
    distance = _distances(rows, columns)

    def of_image(both):
        x, mask = both
        mask = mask.astype(bool)
        u = _unit(x)
        cosines = _product(u, u)
        near, near_counts = _row_means(cosines, (distance == 1) & mask)
        far, far_counts = _row_means(cosines, (distance >= FAR) & ~mask)
        counts = mask & (near_counts > 0) & (far_counts > 0)
        value = jnp.where(counts, near - far, 0.0).sum() / counts.sum()  # 0 / 0 if none counts
        return jnp.where((mask.sum() >= 2) & ~mask.all(), value, jnp.nan)

    return jax.lax.map(of_image, (tokens, masks))


def patches(latents: jax.Array, grid: int) -> jax.Array:
    """Latents (B, h, w, c) as tokens (B, grid * grid, p * p * c) of patches of p = h / grid."""
    batch, side, _, channels = latents.shape
    p = side // grid
    x = latents.reshape(batch, grid, p, grid, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, grid * grid, p * p * channels)


def named(values: np.ndarray) -> dict[str, Any]:
    """Means (..., M) by measure, as lists or numbers."""
    return {name: values[..., i].tolist() for i, name in enumerate(MEASURES)}


@functools.cache
def _distances(rows, columns):
    """The Manhattan distances of all pairs of places, (T, T)."""
    places = np.indices((rows, columns)).reshape(2, -1)
    return np.abs(places[:, :, None] - places[:, None]).sum(0)


def _unit(x):
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def _product(a, b):
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _mean_where(cosines, pairs):
    """The mean over the pairs; NaN without any."""
    return jnp.where(pairs, cosines, 0.0).sum() / pairs.sum()


def _row_means(cosines, pairs):
    """The mean of each row over its pairs, 0 without any, and their count."""
    counts = pairs.sum(1)
    return jnp.where(pairs, cosines, 0.0).sum(1) / jnp.maximum(counts, 1), counts


def _mean(values):
    """The mean over the last axis but one of the finite values; NaN where none is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0.0).sum(-2, dtype=np.float64) / finite.sum(-2)
