"""Sampling of latents and class token as a pair, and the pair's noise."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import original_reg
import parity
import pytest
import tiny
import torch

from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.sampling.sampler import Sampler

BATCH, SIDE, CHANNELS, DIM = 3, 2, 3, 5
NULL = 1000  # REG's sampler knows no other
LABELS = np.array([7, 0, 999])
COUNT = SIDE * SIDE * CHANNELS
RNG = np.random.default_rng(0)
MIX = (RNG.normal(size=(COUNT + DIM, COUNT + DIM)) * 0.3).astype(np.float32)
OF_LABEL = (RNG.normal(size=(NULL + 1, COUNT + DIM)) * 0.7).astype(np.float32)


def flat_velocity(x, t, labels):
    """A velocity of (B, M) that mixes all of latents and class token."""
    return jnp.tanh(x @ MIX + jnp.asarray(OF_LABEL)[labels] + t[:, None]) - 0.3 * x


def pair_of(x):
    return x[:, :COUNT].reshape(-1, SIDE, SIDE, CHANNELS), x[:, COUNT:]


def flat_of(latents, token):
    return jnp.concatenate([latents.reshape(len(latents), -1), token], axis=1)


def pair_velocity(x, t, labels):
    return pair_of(flat_velocity(flat_of(*x), t, labels))


@pytest.mark.parametrize("method", ["euler", "heun", "euler-maruyama"])
@pytest.mark.parametrize("scale", [1.0, 2.5, 0.0])
def test_a_pair_moves_as_the_array_of_both(method, scale):
    sampler = Sampler(method, 7, "linear", scale)
    noise = parity.normal(BATCH, COUNT + DIM, seed=1)
    steps = parity.normal(7, BATCH, COUNT + DIM, seed=2)

    together = sample(
        sampler, flat_velocity, noise, LABELS, null=NULL, step_noise=lambda i: jnp.asarray(steps)[i]
    )
    latents, token = sample(
        sampler, pair_velocity, pair_of(noise), LABELS,
        null=NULL, step_noise=lambda i: pair_of(jnp.asarray(steps)[i]),
    )  # fmt: skip
    np.testing.assert_allclose(flat_of(latents, token), together, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("of_latents", "of_class"), [(2.0, 0.0), (2.0, 1.0), (2.0, 3.0), (0.0, 1.0), (0.0, 0.0)]
)
def test_the_class_token_has_its_own_scale(of_latents, of_class):
    """One Euler step from 1 to 0: x - (uncond + scale (cond - uncond)), a scale for each part."""
    noise = parity.normal(BATCH, COUNT + DIM, seed=1)
    sampler = Sampler("euler", 1, "linear", of_latents, class_token_guidance=of_class)
    latents, token = sample(sampler, pair_velocity, pair_of(noise), LABELS, null=NULL)
    one = np.ones(BATCH, np.float32)
    cond, uncond = (flat_velocity(noise, one, ys) for ys in (LABELS, np.full(BATCH, NULL)))
    scales = np.full(COUNT + DIM, of_latents, np.float32)
    scales[COUNT:] = of_class or of_latents
    expected = noise - (uncond + scales * (cond - uncond))
    np.testing.assert_allclose(flat_of(latents, token), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-0.5, np.inf, np.nan])
def test_a_wrong_scale_is_named(value):
    with pytest.raises(UserError, match="class_token_guidance is"):
        Sampler("euler", 4, "linear", 2.0, class_token_guidance=value)


def test_a_scale_for_no_class_token_is_named():
    sampler = Sampler("euler", 4, "linear", 2.0, class_token_guidance=1.5)
    noise = parity.normal(BATCH, COUNT + DIM, seed=1)
    with pytest.raises(UserError, match="class_token_guidance is 1.5, but the backbone denoises"):
        sample(sampler, flat_velocity, noise, LABELS, null=NULL)
    config = tiny.get_config("repae")
    config.sampling.update(guidance_scale=2.0, class_token_guidance=1.5)
    with pytest.raises(UserError, match="class_token_guidance is 1.5, but the backbone denoises"):
        validate(config)
    config.backbone.class_token_dim = 8
    validate(config)


@pytest.mark.skipif(not original_reg.REG, reason=original_reg.REASON)
@pytest.mark.parametrize(
    ("scale", "of_class", "high"),
    [(1.0, 0.0, 1.0), (2.3, 2.3, 0.85), (2.3, 1.4, 0.85), (2.3, 0, 1)],
)
def test_it_samples_as_reg(scale, of_class, high, monkeypatch):
    """REG's scale of 0 for the class token stands for no guidance, which is a 1 here."""
    module = original_reg.original("samplers.py")
    noise = parity.normal(BATCH, COUNT + DIM, seed=1)
    steps = parity.normal(9, BATCH, COUNT + DIM, seed=2)

    class Net(torch.nn.Module):
        def forward(self, x, t, y, cls_token):
            flat = torch.cat([x.permute(0, 2, 3, 1).flatten(1), cls_token], dim=1)
            moved = torch.tanh(flat @ torch.tensor(MIX) + torch.tensor(OF_LABEL)[y] + t[:, None])
            latents, token = pair_of((moved - 0.3 * flat).numpy())
            return parity.to_nchw(latents), None, torch.tensor(token)

    draws = iter([part for step in steps for part in pair_of(step)])

    def injected(x):
        values = next(draws)
        return (parity.to_nchw(values) if values.ndim == 4 else torch.tensor(values)).to(x.dtype)

    monkeypatch.setattr(torch, "randn_like", injected)
    latents, token = pair_of(noise)
    theirs = module.euler_maruyama_sampler(
        Net(), parity.to_nchw(latents), torch.tensor(LABELS), num_steps=10, cfg_scale=scale,
        guidance_high=high, cls_latents=torch.tensor(token),
        args=types.SimpleNamespace(cls_cfg_scale=of_class),
    )  # fmt: skip
    sampler = Sampler(
        "euler-maruyama", 10, "linear", scale, 0.0, high, class_token_guidance=of_class or 1.0
    )
    ours, _ = sample(
        sampler, pair_velocity, pair_of(noise), LABELS, null=NULL,
        step_noise=lambda i: pair_of(jnp.asarray(steps)[i]),
    )  # fmt: skip
    parity.assert_close(ours, parity.to_nhwc(theirs), "latents")


def test_latents_have_the_same_noise_with_a_class_token():
    key, indices = jax.random.key(3), np.array([5, 0, 11])
    shape = (SIDE, SIDE, CHANNELS)
    latents, token = image_noise(key, indices, shape, DIM)
    np.testing.assert_array_equal(latents, image_noise(key, indices, shape))
    assert token.shape == (BATCH, DIM)
    assert len({float(x) for x in np.ravel(token)}) == BATCH * DIM
    assert not np.isin(np.ravel(token), np.ravel(latents)).any()
    later, its_token = step_noise(key, indices, shape, DIM)(4)
    np.testing.assert_array_equal(later, step_noise(key, indices, shape)(4))
    assert not np.isin(its_token, token).any()
