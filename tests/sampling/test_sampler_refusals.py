"""Samplers that cannot be, and calls that lack what they need, are refused."""

import numpy as np
import pytest
from velocities import CLASSES, SHAPE, velocity

from repae_jax.errors import UserError
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

RNG = np.random.default_rng(1)
NOISE = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpm", 10, "linear"), r"method is 'dpm'.*heun"),
        (("euler", 10, "vp"), r"interpolant is 'vp'.*cosine"),
        (("euler", 0, "linear"), r"steps is 0.*from 1 to"),
        (("heun", 10.0, "linear"), r"steps is 10\.0"),
        (("euler-maruyama", 1, "linear"), r"steps is 1.*from 2 to"),
        (("euler", 10, "linear", -0.5), r"guidance_scale is -0\.5"),
        (("euler", 10, "linear", float("nan")), r"guidance_scale is nan"),
        (("euler", 10, "linear", 2.0, -0.1, 1.0), r"\[-0\.1, 1\.0\]"),
        (("euler", 10, "linear", 2.0, 0.0, 1.1), r"\[0\.0, 1\.1\]"),
        (("euler", 10, "linear", 2.0, 0.6, 0.5), r"\[0\.6, 0\.5\]"),
        (("euler", 10, "linear", 2.0, 0.5, 0.6, 0, "t"), "guidance_rule is 't': use 'step' or"),
    ],
)
def test_impossible_samplers_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Sampler(*arguments)


@pytest.mark.parametrize(
    ("method", "interpolant", "scale", "message"),
    [
        ("euler", "linear", 0.0, "noise_scale is 0.0: give a finite number above 0"),
        ("euler-maruyama", "linear", 2.0, "noise_scale is 2.0, but euler-maruyama adds unit noise"),
        ("ddim", "ddpm", 2.0, "noise_scale is 2.0, but the path 'ddpm' has unit noise: use 1"),
    ],
)
def test_noise_that_cannot_be_scaled_is_named(method, interpolant, scale, message):
    with pytest.raises(UserError, match=message):
        Sampler(method, 10, interpolant, noise_scale=scale)


def test_guidance_without_a_null_label_is_refused():
    with pytest.raises(UserError, match="null is None"):
        sample(Sampler("euler", 4, "linear", 1.5), velocity, NOISE, LABELS)


def test_the_sde_without_noise_is_refused():
    with pytest.raises(UserError, match="step_noise is None"):
        sample(Sampler("euler-maruyama", 4, "linear"), velocity, NOISE, LABELS)
