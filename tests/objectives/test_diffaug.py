"""DiffAug against torch with the same numbers, and the distribution of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch_diffaug

from repae_jax.objectives.diffaug import NUMBERS, diff_augment, sample_numbers, shifts

SIZES = ((4, 12, 20, 3), (3, 16, 9, 3))  # 12 and 20 pixels have halves of a pixel to round


@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_equal_torch(size):
    x, weight = (parity.normal(*size, seed=seed) for seed in (0, 1))
    numbers = np.random.default_rng(2).uniform(size=(len(x), NUMBERS)).astype(np.float32)
    leaf = parity.to_nchw(x).requires_grad_()
    expected = torch_diffaug.diff_augment(leaf, torch.tensor(numbers))
    (expected * parity.to_nchw(weight)).sum().backward()

    def weighted(x):
        augmented = diff_augment(x, numbers)
        return (augmented * weight).sum(), augmented

    gradient, actual = jax.jit(jax.grad(weighted, has_aux=True))(x)
    parity.assert_close(actual, parity.to_nhwc(expected), "images")
    parity.assert_close(gradient, parity.to_nhwc(leaf.grad), "gradient")


def test_each_number_does_one_thing():
    x = jnp.asarray(parity.normal(1, 16, 16, 3, seed=0))
    same = np.full((1, NUMBERS), 0.5, np.float32)
    same[:, 3] = 0.5  # a factor of 1
    np.testing.assert_allclose(diff_augment(x, same), x, atol=1e-6)

    def changed(place, value):
        numbers = same.copy()
        numbers[:, place] = value
        return diff_augment(x, numbers)

    down, right = changed(0, 0.0), changed(1, 0.999)
    np.testing.assert_allclose(down[:, 2:], x[:, :-2], atol=1e-6)
    np.testing.assert_array_equal(down[:, :2], 0)
    np.testing.assert_allclose(right[:, :, :-2], x[:, :, 2:], atol=1e-6)
    np.testing.assert_array_equal(right[:, :, -2:], 0)
    np.testing.assert_allclose(changed(2, 0.9), x + 0.4, atol=1e-6)
    gray = x.mean(-1, keepdims=True)
    np.testing.assert_allclose(changed(3, 0.0), jnp.broadcast_to(gray, x.shape), atol=1e-6)
    np.testing.assert_allclose(changed(4, 1.0), x.mean() + 1.5 * (x - x.mean()), atol=1e-6)


def test_shifts_cover_an_eighth_evenly():
    numbers = np.linspace(0, 1, 9000, endpoint=False, dtype=np.float32) + np.float32(1e-5)
    for side, most in ((32, 4), (20, 2), (12, 2), (28, 4), (3, 0)):
        values, counts = np.unique(np.asarray(shifts(numbers, side)), return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-most, most + 1))
        assert np.ptp(counts) <= 2


def test_numbers_are_uniform_and_differ_among_images():
    numbers = np.asarray(sample_numbers(jax.random.key(0), (4000, 3)))
    assert numbers.shape == (4000, 3, NUMBERS)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    flat = numbers.reshape(4000, -1)
    np.testing.assert_allclose(flat.mean(0), 0.5, atol=0.02)  # standard error 0.0046
    np.testing.assert_allclose(flat.var(0), 1 / 12, atol=0.005)  # standard error 0.0012
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 0.08  # standard error 0.016
