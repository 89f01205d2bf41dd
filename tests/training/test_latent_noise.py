"""Noise of the latents that a decoder learns from: RAE's augmentation, against torch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import parity
import torch

from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.distributions import Point
from repae_jax.objectives.objective import Objective
from repae_jax.runs.state import create_state
from repae_jax.training.noise import sample_decoder_noise, sample_draws
from repae_jax.training.step import make_loss

SHAPE = (2, 3, 3)


class Linear(nn.Module):
    """Latents are the images, and the decoder is a linear map of their channels."""

    factor, latent_channels, image_channels = 1, 3, 3

    def setup(self):
        self.up = nn.Dense(3)

    def encode(self, images):
        return Point(images)

    def decode(self, latents):
        return self.up(latents)


def test_the_decoder_learns_from_noisy_latents_and_the_loss_compares_clean_images():
    kernel, bias = parity.normal(3, 3, seed=0), parity.normal(3, seed=1)
    pixels = np.random.default_rng(2).integers(0, 256, (4, *SHAPE), np.uint8)
    noise = parity.normal(4, *SHAPE, seed=3)
    draws = sample_draws(jax.random.key(0), 4, SHAPE, latent_noise=0.8)
    draws = draws.replace(decoder_noise=jnp.asarray(noise))
    models = Models(tokenizer=Linear())
    params = {"up": {"kernel": kernel, "bias": bias}}
    state = create_state({"tokenizer": params}, {}, {}, {})
    objective = Objective(
        reconstruction="l2", perceptual_weight=0.0, kl_weight=0.0, adversarial_weight=0.0
    )
    loss = make_loss(models, objective, ("tokenizer",))
    gradient = jax.grad(lambda p: loss({"tokenizer": p}, state, {"image": pixels}, draws)[0])
    ours = gradient(params)["up"]

    images = torch.tensor(pixels).float() / 127.5 - 1
    weight, shift = (torch.tensor(a.copy()).requires_grad_() for a in (kernel, bias))
    decoded = (images + torch.tensor(noise)) @ weight + shift
    ((decoded - images) ** 2).mean().backward()
    parity.assert_close(ours["kernel"], weight.grad, "kernel")
    parity.assert_close(ours["bias"], shift.grad, "bias")


def test_every_image_has_a_deviation_of_its_own_up_to_tau():
    count, shape = 2000, (6, 6, 8)
    noise = np.asarray(sample_decoder_noise(jax.random.key(0), (count, *shape), 0.8))
    deviations = noise.std((1, 2, 3))
    assert deviations.max() < 0.8 * 1.15
    levels = np.quantile(deviations, [0.25, 0.5, 0.75])  # uniform, from 0
    np.testing.assert_allclose(levels, [0.2, 0.4, 0.6], atol=0.03)
    np.testing.assert_allclose((noise / deviations[:, None, None, None]).std(), 1, rtol=0.01)


def test_other_random_numbers_stay():
    off, on = (
        sample_draws(jax.random.key(0), 4, SHAPE, class_token_dim=5, latent_noise=tau)
        for tau in (0.0, 0.8)
    )
    assert off.decoder_noise is None
    for name in ("posterior_noise", "time", "noise", "condition_drop", "class_noise"):
        np.testing.assert_array_equal(getattr(off, name), getattr(on, name))
    for name in ("posterior_noise", "noise"):
        assert abs(np.corrcoef(getattr(on, name).ravel(), on.decoder_noise.ravel())[0, 1]) < 0.5
