"""What a tokenizer's `encode` returns: a Gaussian, one from a cache, or a point."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch

from repae_jax.models.tokenizers.distributions import Gaussian, Point

SHAPE = (2, 3, 5, 4)
MEAN, NOISE = parity.normal(*SHAPE, seed=0), parity.normal(*SHAPE, seed=1)


def test_a_gaussian_of_a_cache_is_that_of_torch():
    std = np.exp(parity.normal(*SHAPE, seed=2))
    found = Gaussian.from_std(jnp.asarray(MEAN), jnp.asarray(std))
    parity.assert_close(found.std, std, "standard deviation")
    parity.assert_close(found.sample(NOISE), MEAN + std * NOISE, "sample")
    theirs = torch.distributions.Normal(torch.tensor(MEAN), torch.tensor(std))
    kl = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(0.0, 1.0))
    parity.assert_close(found.kl(), kl.sum((1, 2, 3)), "KL")


@pytest.mark.parametrize("width", ["none", "some"])
def test_a_cache_without_width_has_finite_values_and_gradients(width):
    std = np.zeros(SHAPE, np.float32)
    if width == "some":
        std[0] = 0.5

    @jax.jit
    def sampled(mean, std, noise):
        z = Gaussian.from_std(mean, std).sample(noise)
        return (z**2).sum(), z

    with jax.debug_nans(True):
        gradients, z = jax.grad(sampled, (0, 1, 2), has_aux=True)(MEAN, std, NOISE)
    np.testing.assert_array_equal(z[1], MEAN[1])
    parity.assert_close(z, MEAN + std * NOISE, "sample", 1e-6)
    by_mean, by_std, by_noise = (np.asarray(gradient) for gradient in gradients)
    parity.assert_close(by_mean, 2 * (MEAN + std * NOISE), "gradient by the mean", 1e-5)
    assert not by_std[1].any()
    assert not by_noise[1].any()
    assert by_std[0].all() == (width == "some")


def test_a_point_is_its_mean():
    point = Point(jnp.asarray(MEAN))
    np.testing.assert_array_equal(point.sample(NOISE), MEAN)
    np.testing.assert_array_equal(point.sample(jax.random.key(0)), MEAN)
    np.testing.assert_array_equal(point.std, np.zeros(SHAPE))
    np.testing.assert_array_equal(point.kl(), np.zeros(2))

    def weighted(mean):
        return (Point(mean).sample(NOISE) * NOISE).sum() + Point(mean).kl().sum()

    gradient = jax.grad(weighted)
    np.testing.assert_array_equal(gradient(jnp.asarray(MEAN)), NOISE)
