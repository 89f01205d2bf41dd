import math

import numpy as np
import pytest
import torch

from repae_jax.evaluation import reconstruction


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    noise = (
        rng.normal(0, 1, originals.shape) * np.array([1, 3, 9, 27, 81, 200])[:, None, None, None]
    )
    return originals, np.clip(originals + noise, 0, 255).astype(np.uint8)


def test_psnr_matches_torch_in_unit_range(pairs):
    a, b = (torch.tensor(x, dtype=torch.float64) / 255 for x in pairs)
    errors = [torch.nn.functional.mse_loss(x, y).item() for x, y in zip(a, b, strict=True)]
    expected = [-10 * math.log(error) / math.log(10) for error in errors]
    np.testing.assert_allclose(reconstruction.psnr(*pairs), expected, rtol=1e-10)


def test_psnr_matches_scikit_image(pairs):
    metrics = pytest.importorskip("skimage.metrics")
    expected = [
        metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(reconstruction.psnr(*pairs), expected, rtol=1e-10)


def test_differences_do_not_wrap_around_in_uint8():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert reconstruction.psnr(black, white)[0] == 0.0
    assert reconstruction.psnr(white, black)[0] == 0.0


@pytest.mark.filterwarnings("error")
def test_identical_images_are_infinitely_good(pairs):
    originals, reconstructions = pairs[0], pairs[1].copy()
    reconstructions[2] = originals[2]
    values = reconstruction.psnr(originals, reconstructions)
    assert np.isinf(values).tolist() == [False, False, True, False, False, False]
    assert values[2] > 0
    assert reconstruction.mean_psnr(originals, reconstructions) == math.inf


def test_mean_is_over_images_and_not_of_the_pooled_error(pairs):
    mean = reconstruction.mean_psnr(*pairs)
    single = [reconstruction.mean_psnr(pairs[0][i : i + 1], pairs[1][i : i + 1]) for i in range(6)]
    assert mean == pytest.approx(math.fsum(single) / 6, rel=1e-12)
    as_one_image = [x.reshape(1, -1, 7, 3) for x in pairs]
    assert mean > reconstruction.psnr(*as_one_image)[0] + 1.0


def test_refuses_what_has_another_range_or_shape(pairs):
    originals, reconstructions = pairs
    with pytest.raises(ValueError, match="float64"):
        reconstruction.psnr(originals / 255, reconstructions / 255)
    with pytest.raises(ValueError, match="one shape"):
        reconstruction.psnr(originals, reconstructions[:1])
    with pytest.raises(ValueError, match="no images"):
        reconstruction.mean_psnr(originals[:0], reconstructions[:0])
