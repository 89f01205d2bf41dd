"""The spatial structure of tokens: pair by pair, and by iREPA's code."""

import math
import os
import pathlib

import jax
import numpy as np
import pytest
import torch
from checkouts import module_of

from repae_jax.evaluation.spatial import (
    MEASURES,
    SpatialStructure,
    named,
    patches,
    spatial_measures,
    srss,
)  # fmt: skip

IREPA = os.environ.get("IREPA_ORIGINAL")
GRIDS = [(5, 7), (6, 6), (4, 4), (9, 3)]


def tokens_of(rows, columns, dim=10, count=3, seed=0):
    """Tokens that change slowly over the grid, of different lengths."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count, dim, 2)) / 3
    places = np.indices((rows, columns)).reshape(2, -1)
    x = np.cos(waves @ places + rng.uniform(0, 6, (count, dim, 1))).swapaxes(1, 2)
    x = x + 0.3 * rng.normal(size=x.shape)
    return (x * rng.uniform(0.1, 10, (count, rows * columns, 1))).astype(np.float32)


def masks_of(rows, columns, count=3, seed=0):
    """A corner, a random half, and a line whose last token lies apart."""
    masks = np.zeros((count, rows, columns), bool)
    masks[0, : rows // 2, : columns // 2 + 1] = True
    masks[1] = np.random.default_rng(seed).uniform(size=(rows, columns)) < 0.5
    masks[2, 0, :2] = masks[2, -1, -1] = True
    return masks.reshape(count, -1)


def pairs_of(x, rows, columns):
    """(i, j, distance, cosine) of all ordered pairs of different tokens, in float64."""
    u = [row / np.linalg.norm(row) for row in x.astype(np.float64)]
    places = [(i // columns, i % columns) for i in range(rows * columns)]
    for i, (y, z) in enumerate(places):
        for j, (a, b) in enumerate(places):
            if i != j:
                yield i, j, abs(y - a) + abs(z - b), float(u[i] @ u[j])


def by_pairs(x, rows, columns):
    pairs = list(pairs_of(x, rows, columns))
    at = {d: np.mean([s for *_, e, s in pairs if e == d]) for d in range(1, 9)
          if any(e == d for *_, e, _ in pairs)}  # fmt: skip
    far = np.mean([s for *_, d, s in pairs if d >= 6])
    u = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    spread = np.mean([np.sum((v - u.mean(0)) ** 2) for v in u])
    slope = np.polyfit(list(at), list(at.values()), 1)[0]
    return at[1] - far, -slope, math.sqrt(spread)


def srss_by_pairs(x, mask, rows, columns):
    if mask.sum() < 2 or mask.all():
        return math.nan
    pairs, deltas = list(pairs_of(x, rows, columns)), []
    for anchor in np.flatnonzero(mask):
        own = [(j, d, s) for i, j, d, s in pairs if i == anchor]
        near = [s for j, d, s in own if d == 1 and mask[j]]
        far = [s for j, d, s in own if d >= 6 and not mask[j]]
        if near and far:
            deltas.append(np.mean(near) - np.mean(far))
    return np.mean(deltas) if deltas else math.nan


@pytest.mark.parametrize("grid", GRIDS)
def test_the_measures_are_those_of_all_pairs(grid):
    tokens = tokens_of(*grid)
    expected = [by_pairs(x, *grid) for x in tokens]
    actual = jax.jit(spatial_measures, static_argnums=(1, 2))(tokens, *grid)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert len(MEASURES) == actual.shape[1]
    assert np.abs(np.array(expected)).min() > 1e-3  # or nothing would be seen


@pytest.mark.parametrize("grid", GRIDS)
def test_srss_is_that_of_all_pairs(grid):
    tokens, masks = tokens_of(*grid), masks_of(*grid)
    expected = [srss_by_pairs(x, mask, *grid) for x, mask in zip(tokens, masks, strict=True)]
    np.testing.assert_allclose(srss(tokens, masks, *grid), expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(expected).sum() > 1


@pytest.mark.skipif(not IREPA, reason="set IREPA_ORIGINAL to a checkout of iREPA")
@pytest.mark.parametrize("grid", [*GRIDS, (16, 16)])
def test_the_measures_are_irepas(grid):
    module = module_of(pathlib.Path(IREPA) / "metrics" / "spatial_metrics.py", "irepa_spatial")
    tokens, masks = tokens_of(*grid, dim=24), masks_of(*grid)
    found = module.compute_spatial_metrics(
        torch.tensor(tokens), torch.tensor(masks), metrics=[*MEASURES, "srss"], H=grid[0], W=grid[1]
    )["_unnamed"]
    expected = np.stack([found[name]["per_image"].numpy() for name in MEASURES], axis=1)
    np.testing.assert_allclose(spatial_measures(tokens, *grid), expected, rtol=1e-4, atol=1e-5)
    theirs = found["srss"]["per_image"].numpy()
    np.testing.assert_allclose(srss(tokens, masks, *grid), theirs, rtol=1e-4, atol=1e-5)
    averaged = SpatialStructure(expected, expected, {"x": theirs[:, None]}).averaged()
    for name, value in named(averaged.backbone).items():
        assert value == pytest.approx(found[name]["mean"].item(), rel=1e-4)
    assert averaged.teachers["x"][0] == pytest.approx(found["srss"]["mean"].item(), rel=1e-4)


def test_what_a_small_grid_does_not_define_is_nan():
    lds, cds, rmsc = np.asarray(spatial_measures(tokens_of(2, 3), 2, 3)).T
    assert np.isnan(lds).all()
    assert np.isfinite(cds).all()
    assert np.isfinite(rmsc).all()
    assert np.isnan(spatial_measures(tokens_of(1, 2), 1, 2)[:, :2]).all()
    alone = np.asarray(spatial_measures(tokens_of(1, 1), 1, 1))
    assert np.isnan(alone[:, :2]).all()
    np.testing.assert_array_equal(alone[:, 2], 0)


def test_srss_needs_a_foreground_and_a_background():
    tokens = tokens_of(5, 5)
    for mask in (np.zeros(25), np.arange(25) == 3, np.ones(25)):
        assert np.isnan(srss(tokens, np.tile(mask, (3, 1)), 5, 5)).all()


def test_a_token_of_zeros_and_half_precision_are_measured():
    tokens = tokens_of(5, 5)
    tokens[0, 3] = 0.0
    exact = np.asarray(spatial_measures(tokens, 5, 5))
    assert np.isfinite(exact).all()
    half = spatial_measures(jax.numpy.asarray(tokens, jax.numpy.bfloat16), 5, 5)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, exact, atol=0.01)


def test_lengths_and_rotations_do_not_count_and_places_do():
    tokens = tokens_of(6, 6)
    expected = np.asarray(spatial_measures(tokens, 6, 6))
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))
    turned = (3 * tokens @ rotation).astype(np.float32)
    np.testing.assert_allclose(spatial_measures(turned, 6, 6), expected, atol=1e-5)
    shuffled = tokens[:, np.random.default_rng(2).permutation(36)]
    mixed = np.asarray(spatial_measures(shuffled, 6, 6))
    assert (np.abs(mixed[:, :2]) < expected[:, :2] / 2).all()
    np.testing.assert_allclose(mixed[:, 2], expected[:, 2], rtol=1e-5)


def test_latents_are_cut_into_the_backbones_patches():
    latents = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    tokens = np.asarray(patches(latents, 2))
    assert tokens.shape == (2, 4, 12)
    for place, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        np.testing.assert_array_equal(tokens[1, place], latents[1, y : y + 2, x : x + 2].ravel())


def test_undefined_images_are_left_out_of_the_mean():
    values = np.array([[1.0, math.nan], [3.0, math.nan], [math.nan, math.nan]], np.float32)
    found = SpatialStructure(values[None], values, {"x": values}).averaged()
    for mean in (found.backbone[0], found.latents, found.teachers["x"]):
        np.testing.assert_array_equal(mean, [2.0, math.nan])
