"""The times of a sampler's steps, beside torch's and diffusers'."""

import numpy as np
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler
from repae_jax.sampling.steps import time_grid


@pytest.mark.parametrize("steps", [1, 2, 20, 50, 249, 250])
def test_time_grids_are_torchs(steps):
    ode = torch.linspace(1, 0, steps + 1, dtype=torch.float64).numpy()
    sde = torch.linspace(1.0, 0.04, steps + 1, dtype=torch.float64).numpy()
    ours = [
        time_grid(Sampler("euler", steps, "linear")),
        time_grid(Sampler("heun", steps, "linear")),
        time_grid(Sampler("euler-maruyama", steps + 1, "linear")),
    ]
    for grid, theirs in zip(ours, [ode, ode, [*sde, 0.0]], strict=True):
        assert grid.dtype == np.float64
        np.testing.assert_allclose(grid, theirs, rtol=0, atol=2e-16)
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
            np.testing.assert_array_equal(grid, theirs)  # Older processors round twice there.


@pytest.mark.parametrize(("method", "time"), [("euler-maruyama", 0.1), ("heun", 1.0)])
def test_a_last_time_that_a_method_lacks_is_named(method, time):
    with pytest.raises(UserError, match=f"last_time is {time}"):
        Sampler(method, 12, "linear", last_time=time)


FLOW_MATCHING = 3e-3 / 1.002  # the smallest time of 1,000, shifted by 3


def test_times_are_those_of_flow_matching():
    """diffusers shifts its times twice: between its smallest, shifted, and 1, and once more."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(25)
    sampler = Sampler("euler", 25, "linear", shift=3.0, smallest_time=FLOW_MATCHING)
    np.testing.assert_allclose(time_grid(sampler), scheduler.sigmas, atol=1e-6)
    noise = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    x = torch.tensor(noise)
    for step in scheduler.timesteps:
        x = scheduler.step(x * step / 1000, step, x, return_dict=False)[0]
    ours = sample(sampler, lambda x, t, _: x * t[:, None, None, None], noise, np.zeros(2))
    np.testing.assert_allclose(ours, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [dict(smallest_time=1.0), dict(steps=1), dict(last_time=0.01), dict(method="euler-maruyama")],
)
def test_a_smallest_time_that_does_not_fit_is_named(changes):
    given = dict(method="euler", steps=4, interpolant="linear", smallest_time=0.1) | changes
    with pytest.raises(UserError, match="smallest_time is"):
        Sampler(**given)
