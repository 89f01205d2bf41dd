"""The chain of DDPM against diffusers' schedulers and torch's distributions."""

import math

import diffusers
import jax
import numpy as np
import parity
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from repae_jax.errors import UserError
from repae_jax.objectives.ddpm import make_chain, variational_bound
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.objectives.times import Times
from repae_jax.sampling.chain import chain_steps
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler

SHAPE, BATCH, NULL = (3, 2, 4), 3, 7
LINEAR = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
WEIGHTS = np.random.default_rng(0).normal(size=(NULL + 1, SHAPE[-1], 2 * SHAPE[-1])) * 0.5


def predict(x, t, labels):
    """A noise and a variance fraction that depend on all of their inputs."""
    weights = jax.numpy.asarray(WEIGHTS, "float32")[labels]
    mixed = jax.numpy.einsum("bhwc,bcd->bhwd", x, weights)
    return jax.numpy.tanh(mixed + t[:, None, None, None])


def samples(sampler, noise, labels, step_noises):
    return jax.jit(
        lambda noise, labels: sample(
            sampler, predict, noise, labels, null=NULL,
            step_noise=lambda i: jax.numpy.asarray(step_noises)[i],
        )
    )(noise, labels)  # fmt: skip


@pytest.mark.parametrize(("scale", "channels"), [(1.0, 0), (3.0, 0), (3.0, 2)])
@pytest.mark.parametrize(("method", "count"), [("ddpm", 10), ("ddim", 10), ("ddpm", 1)])
def test_samples_are_those_of_diffusers(method, count, scale, channels, monkeypatch):
    noise, steps = parity.normal(BATCH, *SHAPE, seed=1), parity.normal(count, BATCH, *SHAPE, seed=2)
    labels = np.array([0, 3, 5])
    if method == "ddpm":
        scheduler = diffusers.DDPMScheduler(**LINEAR, variance_type="learned_range")
        scheduler.set_timesteps(timesteps=list(chain_steps(method, count))[::-1])
    else:
        scheduler = diffusers.DDIMScheduler(**LINEAR)
        scheduler.set_timesteps(count)
    injected = iter(steps)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda shape, **_: torch.tensor(next(injected)).permute(0, 3, 1, 2),
    )
    x = parity.to_nchw(noise)
    for t in scheduler.timesteps:
        time = np.full(BATCH, float(t) / 1000, np.float32)
        cond, uncond = (
            np.asarray(predict(parity.to_nhwc(x), time, y)) for y in (labels, np.full(BATCH, NULL))
        )
        guided = channels or SHAPE[-1]
        both = cond.copy()
        both[..., :guided] = (uncond + scale * (cond - uncond))[..., :guided]
        if method == "ddim":
            both = both[..., : SHAPE[-1]]
        x = scheduler.step(parity.to_nchw(both), t, x).prev_sample
    ours = Sampler(method, count, "ddpm", scale, guidance_channels=channels)
    found = samples(ours, noise, labels, steps)
    parity.assert_close(found, parity.to_nhwc(x), "samples", 2e-4)


def test_the_first_ddpm_step_is_the_last_of_training():
    assert chain_steps("ddpm", 10) == (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)
    assert chain_steps("ddim", 4) == (0, 250, 500, 750)


@pytest.mark.parametrize(
    ("method", "steps", "message"),
    [
        ("ddim", 300, "no whole stride .* use 334"),
        ("ddpm", 1001, "takes 1 to 1000"),
        ("euler-maruyama", 250, "choose one of ddpm, ddim, which sample a model of the noise"),
    ],
)
def test_other_steps_and_methods_are_named(method, steps, message):
    with pytest.raises(UserError, match=message):
        Sampler(method, steps, "ddpm")


def test_a_velocity_has_no_chain():
    with pytest.raises(UserError, match="choose one of euler, .* a model of the velocity"):
        Sampler("ddpm", 10, "linear")
    with pytest.raises(UserError, match="ddpm has no shift"):
        Sampler("ddpm", 10, "ddpm", shift=2.0)


def test_the_chain_is_that_of_diffusers():
    scheduler = diffusers.DDPMScheduler(**LINEAR)
    np.testing.assert_allclose(make_chain().alpha_bar, scheduler.alphas_cumprod, rtol=2e-5)
    x, noise = parity.normal(4, *SHAPE, seed=1), parity.normal(4, *SHAPE, seed=2)
    steps = np.array([0, 1, 500, 999])
    noisy, target = interpolate(PATHS["ddpm"], x, noise, np.float32(steps) / 1000)
    expected = scheduler.add_noise(torch.tensor(x), torch.tensor(noise), torch.tensor(steps))
    parity.assert_close(noisy, expected, "noisy latents", 1e-5)
    np.testing.assert_array_equal(target, noise)


@pytest.mark.parametrize("step", [1, 2, 500, 999])
def test_the_bound_is_a_divergence_of_gaussians(step):
    chain = make_chain()
    x, noise, predicted, fraction = (parity.normal(2, *SHAPE, seed=seed) for seed in range(4))
    t = np.full(2, step / 1000, np.float32)
    noisy, _ = interpolate(PATHS["ddpm"], x, noise, t)
    alpha = chain.alpha_bar[step]
    data = (noisy - np.sqrt(1 - alpha) * predicted) / np.sqrt(alpha)
    beta = 1 - alpha / chain.alpha_bar[step - 1]
    posterior = beta * (1 - chain.alpha_bar[step - 1]) / (1 - alpha)

    def mean(data):
        return (
            beta * np.sqrt(chain.alpha_bar[step - 1]) * data
            + (1 - chain.alpha_bar[step - 1]) * np.sqrt(1 - beta) * noisy
        ) / (1 - alpha)

    learned = posterior ** ((1 - fraction) / 2) * beta ** ((1 + fraction) / 2)
    true, ours = (
        Normal(torch.tensor(np.float64(m)), torch.tensor(np.float64(v)).sqrt())
        for m, v in ((mean(x), posterior), (mean(data), learned))
    )
    expected = kl_divergence(true, ours).mean() / math.log(2)
    found = variational_bound(x, noisy, predicted, fraction, t)
    parity.assert_close(found, np.float64(expected), "bound")


def test_the_first_step_is_a_likelihood_of_bytes():
    chain = make_chain()
    grid = np.linspace(-1, 1, 256, dtype=np.float32)  # bytes, both ends included
    x = grid.reshape(1, 16, 16, 1)
    noise, predicted = parity.normal(*x.shape, seed=1), parity.normal(*x.shape, seed=2)
    fraction = np.zeros_like(x)
    t = np.zeros(1, np.float32)
    noisy, _ = interpolate(PATHS["ddpm"], x, noise, t)
    alpha = chain.alpha_bar[0]
    mean = (np.float64(noisy) - np.sqrt(1 - alpha) * predicted) / np.sqrt(alpha)
    deviation = np.exp(0.25 * (chain.log_beta[0] + chain.log_posterior[0]))
    normal = Normal(torch.tensor(mean), torch.tensor(deviation))
    value = torch.tensor(np.float64(x))
    above, below = normal.cdf(value + 1 / 255), normal.cdf(value - 1 / 255)
    above, below = above.masked_fill(value > 0.999, 1.0), below.masked_fill(value < -0.999, 0.0)
    expected = -(above - below).clamp(min=1e-12).log().mean() / math.log(2)
    found = variational_bound(x, noisy, predicted, fraction, t)
    parity.assert_close(found, np.float64(expected), "likelihood", 2e-2)  # of the tanh


def test_times_are_those_of_the_steps():
    t = np.asarray(Times().sample(jax.random.key(0), 20_000, "ddpm"))
    steps = np.round(t * 1000)
    np.testing.assert_allclose(t, steps / 1000, atol=1e-7)
    assert (steps.min(), steps.max()) == (0, 999)
    assert abs(steps.mean() - 499.5) < 8
