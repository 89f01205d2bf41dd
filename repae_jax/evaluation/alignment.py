"""CKNNA: agreement of two networks on the nearest neighbors of the same images.

Huh et al. 2024, "The Platonic Representation Hypothesis" (arXiv 2405.07987), appendix A.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_array, diags_array

from repae_jax.errors import UserError, warn
from repae_jax.evaluation.features import check_features
from repae_jax.utils.finite import NotFinite

TOP_K = 10  # REPA's, on 10,000 images
_ROWS = 1024  # rows of a similarity matrix computed at a time
# Added to the denominator, as in platonic-rep's `AlignmentMetrics.cknna`. For features of unit
# length HSIC is about k / N = 1e-3 at 10,000 images, so the offset changes the fourth digit.
_OFFSET = 1e-6


def cknna(
    first: np.ndarray,
    second: np.ndarray,
    topk: int | None = TOP_K,
) -> float:
    """Centered kernel nearest-neighbor alignment (CKNNA) of two networks' features of N images.

    With kernels K = X X', L = Y Y' and the mask of pairs (i, j) where j is among the `topk` images
    most similar to i in both, it is

      HSIC(mask K, mask L) / (sqrt(HSIC(mask_K K, mask_K K) HSIC(mask_L L, mask_L L)) + 1e-6)

    as in platonic-rep's code, here in float64: the kernels are inner products, centered by HSIC
    after masking. HSIC is the unbiased estimate (Song et al. 2012, eq. 5), which excludes each
    image's similarity with itself.

    The value depends on the rows' lengths, and through the 1e-6 slightly on their scale.
    platonic-rep's scripts first clip each feature set at the 95 % quantile of its magnitudes and
    scale rows to unit length; the caller does both with `normalize_features`. REPA (arXiv
    2410.06940) uses k = 10 and 10,000 images of ImageNet's validation set; its code holds no CKNNA.
    The caller reduces tokens to one row per image: their mean, or all of them concatenated.

    Args:
      first: (N, D) features, one row per image.
      second: (N, E) features of the same images in the same order.
      topk: neighbors, 2 to N - 1; None takes N - 1. Among equally similar images the first count.

    Returns:
      A value of at most 1, up to the sampling error of the unbiased estimate; it can fall below 0.
      NaN if the estimates in the denominator have a negative product, as may happen for few images.

    Raises:
      UserError: unequal N, `topk` out of range, fewer than 4 images, NaN or infinite values, or one
        set has equal rows only, so that no row is nearer than another.
    """
    first, second = (
        check_features(first, "first features"),
        check_features(second, "second features"),
    )
    count = len(first)
    if count != len(second):
        raise UserError(f"{count} and {len(second)} features: give both of the same images")
    topk = count - 1 if topk is None else topk
    if count < 4 or not 2 <= topk < count:
        raise UserError(
            f"CKNNA of {count} images with topk = {topk}: needs 4 images and 2 <= topk < images"
        )
    for name, features in (("first", first), ("second", second)):
        if _alike(features):
            raise UserError(f"the {name} features are all equal, so none is nearer than another")
    kernels = [_nearest(features, topk) for features in (first, second)]
    masks = [_mask(kernel) for kernel in kernels]
    shared = _hsic(kernels[0] * masks[1], kernels[1] * masks[0])
    own = _hsic(kernels[0], kernels[0]) * _hsic(kernels[1], kernels[1])
    return float(shared / (np.sqrt(own) + _OFFSET)) if own >= 0 else float("nan")


def cknna_or_nan(first: np.ndarray, second: np.ndarray, topk: int = TOP_K) -> float:
    """`cknna`, or NaN if all rows of one set are equal, as after a collapse."""
    return math.nan if _alike(first) or _alike(second) else cknna(first, second, topk)


def alignments(tokens: np.ndarray, teachers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """CKNNA of the `tokens` with each teacher's features of the same images, by teacher.

    A teacher with an undefined CKNNA is left out with a warning, so that a run or a study continues
    after a collapse.

    Args:
      tokens: (N, D), one row per image, as the network returns them.
      teachers: name -> features (N, D_k), as the teacher returns them.
    """
    found, ours = {}, _normalized(tokens)
    for name, features in teachers.items():
        value, theirs = math.nan, _normalized(features)
        if ours is not None and theirs is not None:
            value = cknna_or_nan(ours, theirs)
        if math.isnan(value):
            warn_of_undefined(name)
        else:
            found[name] = value
    return found


def _normalized(features):
    """`normalize_features`, or None if values are NaN or infinite."""
    try:
        return normalize_features(features)
    except NotFinite:
        return None


def warn_of_undefined(name: str, where: str = "") -> None:
    """Warn that CKNNA with the teacher `name` is undefined and left out."""
    warn(
        f"CKNNA with the teacher {name} is left out{where}: it is not defined where the tokens of "
        "all images are alike or not finite, or the images too few"
    )


def _alike(features):
    return bool((features == features[0]).all())


def normalize_features(features: np.ndarray) -> np.ndarray:
    """Clip and normalize features (N, D) for `cknna` as platonic-rep's scripts do; float64.

    Values are clipped at the mean over rows of the 95 % quantile of their magnitudes; then rows are
    scaled to unit length.

    Raises:
      NotFinite: values are NaN or infinite.
    """
    features = check_features(features)
    limit = np.quantile(np.abs(features), 0.95, axis=1).mean()
    features = features.clip(-limit, limit)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _nearest(features, topk):
    """The kernel (N, N), sparse: each row keeps its `topk` largest off-diagonal entries."""
    count = len(features)
    columns, values = [], []
    for start in range(0, count, _ROWS):
        similarities = features[start : start + _ROWS] @ features.T
        ranked = similarities.copy()
        ranked[np.arange(len(ranked)), start + np.arange(len(ranked))] = -np.inf
        chosen = _largest(ranked, topk)
        columns.append(chosen)
        values.append(np.take_along_axis(similarities, chosen, axis=1))
    ends = topk * np.arange(count + 1)
    data = (np.concatenate(values).ravel(), np.concatenate(columns).ravel(), ends)
    return csr_array(data, shape=(count, count))


def _largest(rows, topk):
    """The columns (R, topk) of each row's largest values; among equal values the first count."""
    bound = np.partition(rows, -topk, axis=1)[:, -topk, None]
    above, equal = rows > bound, rows == bound
    room = topk - above.sum(1, keepdims=True)
    kept = above | (equal & (np.cumsum(equal, axis=1) <= room))
    return np.nonzero(kept)[1].reshape(len(rows), topk)


def _mask(kernel):
    """1 where `kernel` has an entry, even an entry of 0."""
    return csr_array((np.ones_like(kernel.data), kernel.indices, kernel.indptr), kernel.shape)


def _hsic(a, b):
    """The unbiased HSIC of two kernels (N, N)."""
    count = a.shape[0]
    a, b = (each - diags_array(each.diagonal()) for each in (a, b))
    value = (a * b.T).sum() + a.sum() * b.sum() / ((count - 1) * (count - 2))
    return (value - 2.0 * (a.sum(0) @ b.sum(1)) / (count - 2)) / (count * (count - 3))
