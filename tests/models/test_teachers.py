import numpy as np
import pytest
import torch

from repae_jax.errors import UserError
from repae_jax.models.teachers import preprocess


def images(*size):
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "expected_size"), [(256, 224), (512, 448)])
def test_dinov2_normalises_then_resizes_as_torch(size, expected_size):
    pixels = images(size, size)
    actual = np.asarray(preprocess(pixels, "dinov2"))
    assert actual.shape == (1, expected_size, expected_size, 3)
    # torch in float32 rounds the positions of the samples: 4e-5 of a weight at 512 pixels
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 3e-6)):
        x = torch.tensor(pixels, dtype=dtype).permute(0, 3, 1, 2) / 255.0
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype)[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype)[:, None, None]
        x = torch.nn.functional.interpolate((x - mean) / std, expected_size, mode="bicubic")
        expected = x.permute(0, 2, 3, 1).numpy()
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_native_scales_to_minus_one_to_one():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    actual = preprocess(pixels, "native")
    np.testing.assert_allclose(np.ravel(actual), [-1.0, -0.6, 1.0], atol=1e-6)


@pytest.mark.parametrize("size", [(224, 224), (256, 512), (300, 300)])
def test_dinov2_names_the_sizes_that_work(size):
    with pytest.raises(UserError, match=f"256, 512, 768.*{size[0]} x {size[1]}"):
        preprocess(images(*size), "dinov2")


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'clip'.*dinov2, native"):
        preprocess(images(8, 8), "clip")


def test_floats_are_refused():
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        preprocess(images(8, 8).astype(np.float32), "native")
