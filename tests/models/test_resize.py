import jax
import numpy as np
import pytest
import torch
from parity import to_nchw, to_nhwc
from torch_fidelity import interpolate_compat_tensorflow as tensorflow1

from repae_jax.models.resize import (
    bicubic_matrix,
    resize_bicubic,
    resize_bilinear,
    resize_bilinear_tf1,
)


def torch_resize(x, height, width, mode, antialias):
    x = torch.nn.functional.interpolate(
        x.permute(0, 3, 1, 2),
        size=(height, width),
        mode=mode,
        align_corners=False,
        antialias=antialias,
    )
    return x.permute(0, 2, 3, 1)


RESIZES = {"bicubic": resize_bicubic, "bilinear": resize_bilinear}


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [
        ((37, 37), (16, 16)),
        ((37, 37), (32, 32)),
        ((8, 8), (5, 13)),
        ((3, 9), (9, 2)),
        ((6, 6), (6, 6)),
    ],
)
def test_resize_equals_torch(size_in, size_out, antialias, mode):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size_in, 3)).astype(np.float32)
    weight = rng.normal(size=(2, *size_out, 3)).astype(np.float32)
    x_torch = torch.tensor(x, requires_grad=True)
    expected = torch_resize(x_torch, *size_out, mode, antialias)
    (expected * torch.tensor(weight)).sum().backward()

    def weighted(x):
        y = RESIZES[mode](x, *size_out, antialias=antialias)
        return (y * weight).sum(), y

    gradient, actual = jax.grad(weighted, has_aux=True)(x)
    np.testing.assert_allclose(actual, expected.detach(), atol=2e-5)
    np.testing.assert_allclose(gradient, x_torch.grad, atol=2e-5)


def test_coefficient_defaults_to_the_one_of_torch():
    for antialias, a in ((False, -0.75), (True, -0.5)):
        explicit = bicubic_matrix(9, 4, a=a, antialias=antialias)
        other = bicubic_matrix(9, 4, a=a - 0.1, antialias=antialias)
        np.testing.assert_array_equal(bicubic_matrix(9, 4, antialias=antialias), explicit)
        assert np.abs(explicit - other).max() > 1e-3


def test_half_precision_input_is_resized_in_float32():
    x = jax.numpy.full((1, 4, 4, 1), 1.0, jax.numpy.bfloat16)
    assert resize_bicubic(x, 3, 3).dtype == np.float32


@pytest.mark.parametrize("size_in", [(32, 32), (64, 64), (256, 256), (512, 512), (1, 700)])
def test_bilinear_equals_that_of_tensorflow_1(size_in):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size_in, 3), np.uint8)
    expected = tensorflow1.interpolate_bilinear_2d_like_tensorflow1x(
        to_nchw(pixels).float(), size=(299, 299), align_corners=False
    )
    actual = resize_bilinear_tf1(pixels, 299, 299)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, to_nhwc(expected), atol=1e-4)


def test_bilinear_at_the_same_size_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 7, 5, 3), np.uint8)
    np.testing.assert_array_equal(resize_bilinear_tf1(pixels, 7, 5), pixels)
