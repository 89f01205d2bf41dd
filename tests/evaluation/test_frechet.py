import math
import re

import numpy as np
import pytest
import scipy.linalg

from repae_jax.evaluation.frechet import Gaussian, Moments, frechet_distance


def features(count, dimension, seed=0, offset=0.0):
    """Correlated, with a spectrum over four decades as Inception's features have."""
    rng = np.random.default_rng(seed)
    mixing, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    scales = np.geomspace(1, 1e-2, dimension)
    return (
        rng.normal(size=(count, dimension)) * scales @ mixing + rng.normal(size=dimension) + offset
    )


def moments_of(*batches):
    moments = Moments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


def by_matrix_root(a, b):
    """The formula as FID's reference implementations evaluate it, in float64."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root)
    return np.square(a.mean - b.mean).sum() + spread


@pytest.mark.parametrize("sizes", [[300], [1, 0, 99, 200], [100] * 3])
def test_moments_are_numpys_however_they_are_batched(sizes):
    values = features(300, 24, offset=5.0)
    moments = moments_of(*np.split(values, np.cumsum(sizes)[:-1]))
    assert moments.count == 300
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(values, rowvar=False), atol=1e-15)
    assert np.array_equal(moments.covariance, moments.covariance.T)


def test_a_large_mean_costs_no_digits():
    values = np.random.default_rng(0).normal(size=(1000, 4))
    far = moments_of(*np.split(values + 1e6, 10))
    np.testing.assert_allclose(far.covariance, np.cov(values, rowvar=False), atol=1e-9)


def test_narrow_floats_are_summed_in_float64():
    values = features(5000, 4, offset=100.0).astype(np.float16)
    expected = np.cov(values.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments_of(values).covariance, expected, rtol=1e-10)


@pytest.mark.parametrize("dimension", [1, 2, 64, 200])
def test_distance_is_that_of_the_matrix_root(dimension):
    a = moments_of(features(3000, dimension, seed=0))
    b = moments_of(features(2000, dimension, seed=1) * 1.3)
    assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-9)
    centred = Gaussian(a.mean, b.covariance)  # the covariances' part alone
    assert frechet_distance(a, centred) == pytest.approx(by_matrix_root(a, centred), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(a.gaussian(), b) == frechet_distance(a, b)


def test_distance_of_axis_aligned_gaussians_is_the_sum_over_axes():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 50)), rng.uniform(0, 3, (2, 50))
    basis, _ = np.linalg.qr(rng.normal(size=(50, 50)))  # commuting covariances, any basis
    a, b = (
        Gaussian(mean @ basis.T, basis * deviation**2 @ basis.T)
        for mean, deviation in zip(means, deviations, strict=True)
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_fewer_samples_than_dimensions_give_the_distance_within_their_span():
    # An isometry into 300 dimensions changes no distance, but makes covariances singular.
    low = [features(60, 5, seed=0), features(80, 5, seed=1) * 2]
    isometry, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(300, 300)))
    expected = frechet_distance(*map(moments_of, low))
    assert expected == pytest.approx(by_matrix_root(*map(moments_of, low)), rel=1e-9)
    high = [moments_of(values @ isometry[:5]) for values in low]
    assert frechet_distance(*high) == pytest.approx(expected, rel=1e-9)
    # In orthogonal spans nothing is shared: tr((A B)^(1/2)) = 0.
    a, b = moments_of(low[0] @ isometry[:5]), moments_of(low[1] @ isometry[5:10])
    apart = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, b) == pytest.approx(apart, rel=1e-9)


def test_few_samples_against_many_match_a_gram_matrix():
    # tr((A B)^(1/2)) from the eigenvalues of the small matrix X B X' / (n - 1).
    few, many = features(20, 150, seed=0), moments_of(features(2000, 150, seed=1))
    a = moments_of(few)
    deviations = few - few.mean(0)
    gram = deviations @ many.covariance @ deviations.T / 19
    root = np.sqrt(np.linalg.eigvalsh(gram)[1:]).sum()  # the deviations have rank 19
    expected = np.square(a.mean - many.mean).sum() - 2 * root
    expected += np.trace(a.covariance) + np.trace(many.covariance)
    assert frechet_distance(a, many) == pytest.approx(expected, rel=1e-9)


def test_covariances_rounded_to_float32_lose_digits_only():
    # Rounding makes some of a singular covariance's eigenvalues negative.
    exact = [moments_of(features(30, 60, seed=seed)).gaussian() for seed in (0, 1)]
    rounded = [Gaussian(g.mean, g.covariance.astype(np.float32)) for g in exact]
    assert np.linalg.eigvalsh(rounded[0].covariance.astype(np.float64))[0] < 0
    assert frechet_distance(*rounded) == pytest.approx(frechet_distance(*exact), rel=1e-2)


@pytest.mark.parametrize("count", [2, 30, 500])
def test_equal_distributions_are_zero_apart(count):
    moments = moments_of(features(count, 100, offset=10.0))
    shuffled = moments_of(np.random.default_rng(1).permutation(features(count, 100, offset=10.0)))
    trace = np.trace(moments.covariance)
    assert 0 <= frechet_distance(moments, moments) < 1e-11 * trace
    assert 0 <= frechet_distance(moments, shuffled) < 1e-11 * trace


def test_points_have_distances_too():
    a, b = moments_of(np.full((5, 3), 0.1)), moments_of(np.full((9, 3), 0.5))
    assert frechet_distance(a, b) == pytest.approx(3 * 0.4**2, rel=1e-12)
    assert frechet_distance(a, a) == 0.0
    cloud = moments_of(features(50, 3))
    expected = np.square(cloud.mean - a.mean).sum() + np.trace(cloud.covariance)
    assert frechet_distance(a, cloud) == pytest.approx(expected, rel=1e-12)


def test_bad_features_and_moments_are_named():
    values = features(5000, 3)
    values[4500, 1] = math.inf
    with pytest.raises(ValueError, match="row 4500 holds NaN"):
        moments_of(values)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        frechet_distance(moments_of(values[:1]), moments_of(values[:9]))
    with pytest.raises(ValueError, match="of 3 and of 2 dimensions"):
        frechet_distance(moments_of(values[:9]), moments_of(values[:9, :2]))
    with pytest.raises(ValueError, match="of 2 and of 3 dimensions"):
        moments_of(values[:9], values[:9, :2])
    good = moments_of(values[:9]).gaussian()
    for covariance, message in [
        (np.diag([1.0, -0.5, 2.0]), "negative eigenvalue -0.5"),
        (np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), "not symmetric"),
        (np.full((3, 3), math.nan), "not finite"),
        (np.eye(2), "got (3,) and (2, 2)"),
    ]:
        with pytest.raises(ValueError, match="second .*" + re.escape(message)):
            frechet_distance(good, Gaussian(good.mean, covariance))
