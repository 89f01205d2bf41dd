import math

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from repae_jax.evaluation.precision_recall import precision_recall


def clouds(reference, generated, dimension=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dimension))
    a = centres[rng.integers(5, size=reference)] + 0.5 * rng.normal(size=(reference, dimension))
    b = centres[rng.integers(3, size=generated)] + 0.4 * rng.normal(size=(generated, dimension))
    return a.astype(np.float32), b.astype(np.float32)


def by_definition(reference, generated, k=3):
    """Point by point in float64, with differences instead of inner products."""

    def squared(points, point):
        return np.square(points.astype(np.float64) - point.astype(np.float64)).sum(1)

    def fraction_inside(points, manifold):
        radii = [np.sort(np.delete(squared(manifold, p), i))[k - 1] for i, p in enumerate(manifold)]
        return np.mean([(squared(manifold, p) <= radii).any() for p in points])

    return fraction_inside(generated, reference), fraction_inside(reference, generated)


@pytest.mark.parametrize("block", [33, 64, 4096])
@pytest.mark.parametrize(("sizes", "k"), [((200, 150), 3), ((90, 260), 3), ((131, 131), 1)])
def test_counts_are_those_of_the_definition(sizes, k, block):
    sets = clouds(*sizes)
    result = precision_recall(*sets, k, block=block)
    assert (result.precision, result.recall) == by_definition(*sets, k)
    assert 0.05 < result.recall < result.precision < 1  # nothing trivial was compared


def test_counts_with_many_ties_are_exact():
    # Whole-numbered coordinates: every distance is exact in float32, and many equal a radius.
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (120, 3)), rng.integers(1, 7, (110, 3))
    expected = by_definition(a, b)
    assert 0.1 < expected[0] < 1
    result = precision_recall(a.astype(np.float32), b.astype(np.float32), block=32)
    assert (result.precision, result.recall) == expected
    shifted = precision_recall(a + 100_000.0, b + 100_000.0, block=32)
    assert shifted == result


def test_matches_the_neighbours_of_scikit_learn():
    reference, generated = clouds(400, 300, dimension=64, seed=2)

    def inside(points, manifold):
        near = NearestNeighbors(n_neighbors=4).fit(manifold)
        radii = near.kneighbors(manifold)[0][:, -1]  # each point is its own first neighbour
        distances = NearestNeighbors(n_neighbors=len(manifold)).fit(manifold)
        lengths, indexes = distances.kneighbors(points)
        return (lengths <= radii[indexes]).any(1).mean()

    result = precision_recall(reference, generated)
    assert result.precision == inside(generated, reference)
    assert result.recall == inside(reference, generated)


def test_features_far_from_zero_lose_nothing():
    reference, generated = (each.astype(np.float64) for each in clouds(150, 150))
    near = precision_recall(reference, generated)
    assert precision_recall(reference + 1e4, generated + 1e4) == near


def test_a_subset_is_precise_and_what_is_elsewhere_is_not():
    reference, _ = clouds(100, 1)
    part = precision_recall(reference, reference[:40])
    assert part.precision == 1.0
    assert part.recall < 1.0
    away = precision_recall(reference, reference[:40] + 100)
    assert (away.precision, away.recall) == (0.0, 0.0)


def test_equal_points_hold_their_copies_alone():
    one = np.full((10, 8), 0.1, np.float32)
    other = np.repeat(np.random.default_rng(0).normal(size=(1, 8)), 10, axis=0)
    assert precision_recall(one, one) == precision_recall(other, other)
    same = precision_recall(one, one)
    assert (same.precision, same.recall) == (1.0, 1.0)
    apart = precision_recall(one, other)
    assert (apart.precision, apart.recall) == (0.0, 0.0)


def test_reads_memory_maps_and_half_precision(tmp_path):
    reference, generated = (each.astype(np.float16) for each in clouds(120, 100))
    path = tmp_path / "features.npy"
    np.save(path, reference)
    mapped = np.load(path, mmap_mode="r")
    result = precision_recall(mapped, generated, block=50, progress=True)
    expected = by_definition(reference, generated)
    assert (result.precision, result.recall) == expected


def test_bad_features_are_named():
    reference, generated = clouds(20, 20)
    broken = generated.copy()
    broken[17, 3] = math.nan
    with pytest.raises(ValueError, match="generated features: row 17"):
        precision_recall(reference, broken, block=5)
    with pytest.raises(ValueError, match="3 generated features have no 3 neighbors"):
        precision_recall(reference, generated[:3])
    with pytest.raises(ValueError, match="16 and of 15 dimensions"):
        precision_recall(reference, generated[:, :15])
    with pytest.raises(ValueError, match="reference features must be"):
        precision_recall(reference[:, :, None], generated)
    with pytest.raises(ValueError, match="neighbors = 0"):
        precision_recall(reference, generated, 0)
