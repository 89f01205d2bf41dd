"""The Fréchet distance of features: FID and its relatives, from streamed moments.

Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The number's name depends on the images, and on the
network and layer of the features: FID, sFID, rFID.
"""

import dataclasses

import numpy as np
from scipy.linalg import eigh, svdvals
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpstrf

from repae_jax.errors import UserError
from repae_jax.evaluation.features import check_features, check_same_dimension

# Number of rows converted to float64 at a time: 64 MiB at 2048 dimensions.
_ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution: mean (D,) and covariance (D, D), float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Count, mean and covariance of features (N, D), streamed, in float64.

    Deviations are summed about the mean of the rows so far (Chan, Golub & LeVeque 1983), so
    features far from zero lose no digits. Order and grouping of rows change only the rounding.

    Attributes:
      count: number of rows so far.
      mean: (D,) mean of the rows so far.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        # The sum of outer products of deviations. BLAS updates an array in Fortran order in place,
        # and only its upper triangle.
        self._scatter = np.zeros((dimension, dimension), order="F")

    def update(self, features: np.ndarray) -> None:
        """Add a batch (B, D) of any float type; B may be 0.

        Raises:
          UserError: another D, or NaN or infinite values.
        """
        features = np.atleast_2d(features)
        check_same_dimension(features.shape[-1], len(self.mean))
        for start in range(0, len(features), _ROWS):
            rows = check_features(features[start : start + _ROWS], first_row=start)
            mean = rows.mean(0)
            self._include(len(rows), mean, rows - mean)

    @property
    def covariance(self) -> np.ndarray:
        """The sample covariance (D, D), divided by N - 1 as ADM's evaluator and pytorch-fid do.

        Raises:
          UserError: fewer than two rows.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        upper = np.triu(self._scatter)
        return (upper + np.triu(upper, 1).T) / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """The normal distribution with these moments.

        Raises:
          UserError: fewer than two rows.
        """
        return Gaussian(self.mean.copy(), self.covariance)

    def _include(self, count, mean, deviations):
        """Add `count` rows, given by their mean (D,) and their deviations (count, D) from it."""
        total = self.count + count
        shift = mean - self.mean
        # The difference of the two groups' means adds one more outer product.
        apart = np.sqrt(self.count * count / total) * shift
        rows = np.concatenate([deviations, apart[None]])
        self._scatter = dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=True)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def frechet_distance(a: Gaussian | Moments, b: Gaussian | Moments) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two normal distributions.

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), with covariances A, B.

    tr((A B)^(1/2)) is the sum of the singular values of F' G for any factors A = F F', B = G G'.
    The factors leave out directions in which a covariance is zero up to rounding. So covariances
    of fewer samples than dimensions need no offset on their diagonals, which the usual square root
    of the unsymmetric A B does need.

    Args:
      a, b: means (D,), covariances (D, D).

    Returns:
      At least 0: negative values from rounding become 0. Equal distributions give 0 up to about
      1e-12 of their traces. A point (all samples equal) is a distribution of covariance 0.

    Raises:
      UserError: unequal dimensions, fewer than two samples, NaN or infinite values, or a covariance
        that is asymmetric or has negative eigenvalues.
    """
    mean_a, covariance_a = _parts(a, "first")
    mean_b, covariance_b = _parts(b, "second")
    check_same_dimension(len(mean_a), len(mean_b))
    product = _factor(covariance_a, "first").T @ _factor(covariance_b, "second")
    root = svdvals(product, overwrite_a=True).sum() if product.size else 0.0
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * root
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread))


def _parts(distribution, which):
    mean = np.asarray(distribution.mean, np.float64)
    covariance = np.asarray(distribution.covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(
            f"the {which} distribution must have a mean (D,) and a covariance (D, D), got "
            f"{mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"the {which} distribution's moments are not finite: compute them anew")
    if np.abs(covariance - covariance.T).max() > 1e-5 * np.abs(covariance).max():
        raise UserError(f"the {which} covariance is not symmetric: compute it anew")
    return mean, covariance


def _factor(covariance, which):
    """A factor F (D, R) with F F' = covariance, where R is the covariance's rank."""
    # Cholesky's factorization is some 50 times faster than eigenvectors. With pivots it gives the
    # rank, but it fails for negative eigenvalues, even those from rounding.
    upper, pivots, rank, _ = dpstrf(covariance)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.triu(upper)[:rank].T
    error = np.abs(factor @ factor.T - covariance).max(initial=0.0)
    if error <= _rounding(covariance) * np.abs(covariance).max():
        return factor
    return _factor_by_eigenvectors(covariance, which)


def _factor_by_eigenvectors(covariance, which):
    values, vectors = eigh(covariance)  # ascending
    largest = np.abs(values).max()
    # float32 rounding of a published covariance stays far above this bound.
    if values[0] < -1e-3 * largest:
        raise UserError(
            f"the {which} covariance has the negative eigenvalue {values[0]:.3g} (the largest is "
            f"{largest:.3g}), so it is no covariance: compute it anew"
        )
    kept = values > _rounding(covariance) * largest
    return vectors[:, kept] * np.sqrt(values[kept])


def _rounding(matrix):
    """The relative tolerance, as a fraction of the largest value, below which a value is zero."""
    return len(matrix) * np.finfo(np.float64).eps
