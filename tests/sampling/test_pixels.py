"""Pixels to floats and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from repae_jax.utils.finite import NotFinite
from repae_jax.utils.images import to_float, to_uint8


def test_pixels_are_truncated_as_torch_truncates_them():
    rng = np.random.default_rng(5)
    images = np.append(rng.normal(size=9999) * 0.8, [-1, 1, -1.5, 1.5, 0]).astype(np.float32)
    theirs = torch.clamp(255.0 * ((torch.tensor(images) + 1) / 2), 0, 255).to(torch.uint8)
    for convert in (to_uint8, jax.jit(to_uint8)):
        ours = convert(images)
        assert ours.dtype == jnp.uint8
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_pixels_become_floats_and_come_back_within_a_level():
    pixels = np.arange(256, dtype=np.uint8)
    for convert in (to_float, jax.jit(to_float)):
        images = convert(pixels)
        assert images.dtype == jnp.float32
        np.testing.assert_allclose(images, pixels.astype(np.float64) / 127.5 - 1, atol=1e-7)
        back = np.asarray(to_uint8(images)).astype(int)
        assert set(np.unique(pixels.astype(int) - back)) <= {0, 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_pixel(bad):
    images = np.array([0.0, bad], np.float32)
    for given in (images, jnp.asarray(images, jnp.bfloat16)):
        with pytest.raises(NotFinite, match="images hold NaN or infinite values"):
            to_uint8(given)
    assert jax.jit(to_uint8)(images)[0] == 127  # in a compiled function nothing can be raised


def test_swapped_pixel_types_are_refused():
    with pytest.raises(TypeError, match="float32"):
        to_float(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="uint8"):
        to_uint8(np.zeros(3, np.uint8))
