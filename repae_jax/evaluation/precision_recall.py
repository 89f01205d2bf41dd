"""Improved precision and recall of generated features (Kynkäänniemi et al. 2019).

arXiv 1904.06991, eqs. 1 and 2: a set's manifold is the union of balls about its points, each
reaching to the point's k-th nearest neighbor within the set.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.evaluation.features import check_features, check_same_dimension

NEIGHBORS = 3
_PADDING = -1.0  # the radius of padding rows, smaller than any distance


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, in [0, 1].

    Attributes:
      precision: fraction of the generated points within the reference's manifold.
      recall: fraction of the reference's points within the generated manifold.
    """

    precision: float
    recall: float


def precision_recall(
    reference: np.ndarray,
    generated: np.ndarray,
    neighbors: int = NEIGHBORS,
    *,
    block: int = 4096,
    progress: bool = False,
) -> PrecisionRecall:
    """Precision and recall of `generated` (M, D) against `reference` (N, D).

    The definitions are those of ADM's evaluator. k is 3. A point's duplicates count as its
    neighbors: the radius is the (k + 1)-th smallest distance, with the point itself counted. A
    point on a ball's surface is inside. Distances are |u|^2 + |v|^2 - 2 u.v, at least 0. ADM's
    evaluator computes them in float16 unless that overflows, so its results differ by points near
    a surface. Here they are float32, with the reference's median subtracted first, so that features
    far from zero lose no digits.

    If all points of a set are equal, its radii are 0, and its manifold contains only their copies.

    Args:
      reference, generated: features, arrays or memory maps (read block by block).
      neighbors: k.
      block: maximal number of points in a block; the device holds the float32 features and a few
        arrays (block, block).
      progress: show a bar.

    Raises:
      ValueError: `neighbors` or `block` below 1.
      UserError: unequal D, k points or fewer in a set, or NaN or infinite values.
    """
    if neighbors < 1 or block < 1:
        raise ValueError(f"neighbors = {neighbors} and block = {block} must be at least 1")
    sets = {
        name: _opened(features, name)
        for name, features in (("reference", reference), ("generated", generated))
    }
    check_same_dimension(*(features.shape[1] for features in sets.values()))
    for name, features in sets.items():
        if len(features) <= neighbors:
            raise UserError(
                f"{len(features)} {name} features have no {neighbors} neighbors each: give more"
            )
    # All blocks have one shape, so each program is compiled once; the blocks need little padding.
    largest = max(map(len, sets.values()))
    size = -(-largest // -(-largest // block))
    center = _center(sets["reference"])
    blocks = [_blocks(features, name, center, size) for name, features in sets.items()]
    with _bar(blocks, progress) as bar:
        radii = [_radii(each, neighbors, bar) for each in blocks]
        inside = _inside(blocks, radii, bar)
    recall, precision = (
        float(flags.reshape(-1)[: len(features)].mean())
        for flags, features in zip(inside, sets.values(), strict=True)
    )
    return PrecisionRecall(precision, recall)


def _blocks(features, name, center, size):
    """(block (size, D) float32 on the device, number of its features); the last is padded."""
    blocks = []
    for start in range(0, len(features), size):
        rows = check_features(features[start : start + size], f"{name} features", start) - center
        padded = np.pad(rows.astype(np.float32), ((0, size - len(rows)), (0, 0)))
        blocks.append((jnp.asarray(padded), len(rows)))
    return blocks


def _radii(blocks, neighbors, bar):
    """For each block, the points' squared distances to their k-th neighbors, (size,)."""
    size = len(blocks[0][0])
    nearest = [jnp.full((size, neighbors + 1), jnp.inf)] * len(blocks)
    for row, (points, count) in enumerate(blocks):
        for column, (others, other_count) in enumerate(blocks[row:], start=row):
            distances = _squared_distances(points, others)
            nearest[row] = _nearer(nearest[row], distances, other_count)
            if row != column:
                nearest[column] = _nearer(nearest[column], distances.T, count)
            # Without this wait the device would hold the distances of many blocks at once.
            nearest[column].block_until_ready()
            bar.update(1)
    return [
        jnp.where(jnp.arange(size) < count, each[:, -1], _PADDING)
        for each, (_, count) in zip(nearest, blocks, strict=True)
    ]


def _inside(blocks, radii, bar):
    """For each of two sets, whether its points lie within the other's manifold: (blocks, size)."""
    inside = [np.zeros((len(each), len(each[0][0])), bool) for each in blocks]
    for row, (first, _) in enumerate(blocks[0]):
        for column, (second, _) in enumerate(blocks[1]):
            found = _within(first, radii[0][row], second, radii[1][column])
            inside[0][row] |= np.asarray(found[0])
            inside[1][column] |= np.asarray(found[1])
            bar.update(1)
    return inside


@jax.jit
def _nearer(nearest, distances, count):
    """The k + 1 smallest in `nearest` (R, k + 1) and the first `count` columns of `distances`."""
    known = jnp.where(jnp.arange(distances.shape[1]) < count, distances, jnp.inf)
    both = jnp.concatenate([nearest, known], axis=1)
    return -jax.lax.top_k(-both, nearest.shape[1])[0]


@jax.jit
def _within(first, first_radii, second, second_radii):
    distances = _squared_distances(first, second)
    return (
        (distances <= second_radii[None, :]).any(1),
        (distances <= first_radii[:, None]).any(0),
    )


@jax.jit
def _squared_distances(a, b):
    # On TPUs and newer GPUs the default precision of a product is bfloat16 or TF32.
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None, :]
    return jnp.maximum(norms - 2.0 * product, 0.0)


def _center(features):
    """The median of each dimension over the first rows, (D,) float64.

    The median of an odd number of rows is one of their values, so integers stay integers and
    equal points become zeros: distances that float32 represents exactly stay exact.
    """
    count = min(255, len(features))
    return np.median(
        check_features(features[: count - 1 + count % 2], "reference features"), axis=0
    )


def _opened(features, name):
    features = features if isinstance(features, np.ndarray) else np.asarray(features)
    if features.ndim != 2:
        raise UserError(f"{name} features must be (N, D), got {features.shape}: flatten the rest")
    return features


def _bar(blocks, progress):
    from tqdm import tqdm

    first, second = map(len, blocks)
    total = (first * (first + 1) + second * (second + 1)) // 2 + first * second
    return tqdm(total=total, desc="precision, recall", unit="block", disable=not progress)
