"""Training times against scipy's distributions."""

import jax
import numpy as np
import pytest
import scipy.stats

from repae_jax.errors import UserError
from repae_jax.objectives.interpolant import INTERPOLANTS
from repae_jax.objectives.times import Times, shift_time

COUNT = 4096


def sample(interpolant="linear", seed=0, **fields):
    t = np.asarray(Times(**fields).sample(jax.random.key(seed), COUNT, interpolant))
    assert t.shape == (COUNT,)
    assert t.dtype == np.float32
    assert ((t >= 0) & (t <= 1)).all()
    return t.astype(np.float64)


def fits(values, distribution):
    return scipy.stats.kstest(values, distribution.cdf).pvalue > 0.01


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_uniform_times_are_uniform(interpolant):
    assert fits(sample(interpolant), scipy.stats.uniform())
    assert fits(sample(interpolant, highest=0.6), scipy.stats.uniform(0, 0.6))


def noise_level(interpolant, t):
    return t / (1 - t) if interpolant == "linear" else np.tan(np.pi / 2 * t)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-0.8, 0.8)])
def test_lognormal_times_have_a_lognormal_noise_level(interpolant, mean, scale):
    t = sample(interpolant, weighting="lognormal", mean=mean, scale=scale)
    level = np.log(noise_level(interpolant, t))
    assert fits(level, scipy.stats.norm(mean, scale))
    assert not fits(level, scipy.stats.norm(mean + 0.3, scale))


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_lognormal_times_are_truncated(interpolant):
    highest = 0.7
    t = sample(interpolant, weighting="lognormal", mean=0.5, highest=highest)
    top = np.log(noise_level(interpolant, highest))
    assert t.max() <= highest + 1e-6
    assert fits(np.log(noise_level(interpolant, t)), scipy.stats.truncnorm(-np.inf, top - 0.5, 0.5))


def test_the_shift_multiplies_the_odds():
    t = np.linspace(0.05, 0.95, 9)
    shifted = shift_time(t, 3.0)
    np.testing.assert_allclose(shifted / (1 - shifted), 3 * t / (1 - t), rtol=1e-12)
    np.testing.assert_allclose(1 - shifted, shift_time(1 - t, 1 / 3), rtol=1e-12)
    plain, moved = (sample(weighting="lognormal", shift=s) for s in (1.0, 3.0))
    np.testing.assert_allclose(moved, shift_time(plain, 3.0), rtol=1e-5)
    assert (shift_time(np.array([0.0, 1.0]), 7.0) == [0, 1]).all()


def test_the_shift_follows_the_truncation():
    assert sample(highest=0.5, shift=4.0).max() > 0.7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weighting": "logitnormal"}, "config.time.weighting is 'logitnormal': use 'uniform' or"),
        ({"mean": 1.0}, "config.time.mean is 1.0 .*--config.time.weighting=lognormal"),
        ({"weighting": "lognormal", "mean": float("nan")}, "config.time.mean is nan"),
        ({"weighting": "lognormal", "scale": 0.0}, "config.time.scale is 0.0"),
        ({"highest": 0.0}, "config.time.highest is 0.0"),
        ({"shift": 0.0}, "config.time.shift is 0.0"),
        ({"shift": float("inf")}, "config.time.shift is inf"),
    ],
)
def test_other_values_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        Times(**fields)


def test_a_grid_of_times_is_that_of_flow_matching():
    """diffusers' 1,000 training times at a shift of 3; 0 is no time, and 1 is."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = np.sort(FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.numpy())
    grid = shift_time(np.arange(1, 1001) / 1000, 3.0)
    np.testing.assert_allclose(grid, theirs, atol=1e-6)
    t = sample(weighting="lognormal", grid=1000, shift=3.0)
    assert np.abs(t[:, None] - grid).min(1).max() < 1e-6
    even = sample(grid=4)
    values, counts = np.unique(even, return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    plain, rounded = (sample(weighting="lognormal", grid=grid) for grid in (0, 1000))
    assert ((rounded - plain >= -1e-6) & (rounded - plain <= 1e-3 + 1e-6)).all()


def test_a_grid_below_zero_is_named():
    with pytest.raises(UserError, match="config.time.grid is -1"):
        Times(grid=-1)
