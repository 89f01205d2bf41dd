"""Against the samplers of the original implementation, where a checkout of it is at hand."""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

ORIGINAL = os.environ.get("REPAE_ORIGINAL")

pytestmark = pytest.mark.skipif(
    not ORIGINAL, reason="set REPAE_ORIGINAL to a checkout of the original implementation"
)

NULL_LABEL = 1000  # The original's samplers know no other.
BATCH, SIZE, CHANNELS = 3, 4, 4


@pytest.fixture(scope="module")
def original():
    spec = importlib.util.spec_from_file_location("samplers", Path(ORIGINAL) / "samplers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        "mix": rng.normal(size=(CHANNELS, CHANNELS)).astype(np.float32) * 0.7,
        "label": rng.normal(size=(NULL_LABEL + 1, CHANNELS)).astype(np.float32) * 0.7,
        "time": rng.normal(size=CHANNELS).astype(np.float32),
        "skip": rng.normal(size=CHANNELS).astype(np.float32) * 0.3,
    }


class Toy(torch.nn.Module):
    """A velocity that is nonlinear in x and mixes it with the label and the time; NCHW."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {name: torch.tensor(value) for name, value in weights.items()}

    def inference(self, x, t, y):
        assert x.dtype == t.dtype == torch.float32
        w = self.weights
        condition = w["label"][y] + t[:, None] * w["time"]
        hidden = torch.einsum("bihw,io->bohw", x, w["mix"]) + condition[:, :, None, None]
        return torch.tanh(hidden) - x * w["skip"][:, None, None]


def toy(weights, x, t, labels):
    condition = weights["label"][labels] + t[:, None] * weights["time"]
    return jnp.tanh(x @ weights["mix"] + condition[:, None, None]) - x * weights["skip"]


def theirs(original, weights, sampler, noise, labels, step_noises, monkeypatch):
    """Their sampler in its own layout, with the noise of each step injected."""
    draws = iter(step_noises)
    monkeypatch.setattr(torch, "randn_like", lambda x: nchw(next(draws)).to(x.dtype))
    run = original.euler_maruyama_sampler if sampler.stochastic else original.euler_sampler
    latents = run(
        Toy(weights),
        nchw(noise),
        torch.tensor(labels),
        num_steps=sampler.steps,
        heun=sampler.method == "heun",
        cfg_scale=sampler.guidance_scale,
        guidance_low=sampler.guidance_low,
        guidance_high=sampler.guidance_high,
        path_type=sampler.interpolant,
    )
    if sampler.stochastic:
        assert next(draws, None) is None  # Every step but the last draws once.
    return latents.permute(0, 2, 3, 1).numpy()


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


# 0.65 and 0.35 are points of the 20-step ODE grid, 0.58 and 0.82 of the 50-step one: there the
# last bit of the time decides whether a step is guided.
INTERVALS = [(0.0, 1.0), (0.0, 0.65), (0.35, 0.65), (0.58, 0.82)]


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize(
    ("method", "interpolant"),
    [
        ("euler", "linear"),
        ("heun", "linear"),
        ("euler-maruyama", "linear"),
        ("euler-maruyama", "cosine"),
    ],
)
def test_latents_match(original, weights, method, interpolant, steps, interval, monkeypatch):
    sampler = Sampler(method, steps, interpolant, 2.5, *interval)
    rng = np.random.default_rng(1)
    shape = (BATCH, SIZE, SIZE, CHANNELS)
    noise = rng.normal(size=shape).astype(np.float32)
    step_noises = rng.normal(size=(steps - 1, *shape)).astype(np.float32)
    labels = rng.integers(0, NULL_LABEL, BATCH)

    @jax.jit
    def run(weights, noise, labels, step_noises):
        return sample(
            sampler,
            lambda x, t, y: toy(weights, x, t, y),
            noise,
            labels,
            null=NULL_LABEL,
            step_noise=lambda i: step_noises[i],
        )

    ours = run(weights, noise, labels, step_noises)
    expected = theirs(original, weights, sampler, noise, labels, step_noises, monkeypatch)
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"{method} {interpolant} {steps} steps, guided in {interval}: {error:.1e}")
    assert error < 1e-4
