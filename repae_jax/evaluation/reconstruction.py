"""PSNR and SSIM of reconstructions.

Other implementations: REPA-E's repository generates samples, leaves their evaluation to ADM's
suite, and holds no code for reconstructions. LightningDiT's `evaluate_tokenizer.py` (VA-VAE)
takes ImageNet's 50,000 validation images at 256 x 256 and samples the posterior. It reports
pytorch-fid's distance between the two folders of PNG files as rFID, and the mean over these files
of the PSNR. It computes torchmetrics' SSIM (with the window and constants used here) and LPIPS
(VGG) from the decoder's output before it is clipped and rounded to uint8.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

# Wang et al. 2004, section III-B, eq. 13: a window of 11 x 11, K1 = 0.01, K2 = 0.03, range 255.
_SIGMA = 1.5
_RADIUS = 5
SSIM_WINDOW = 2 * _RADIUS + 1  # pixels per side, the minimum for images
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, 10 log10(255^2 / MSE), in dB.

    The mean squared error is over all pixels and channels of one image.

    Args:
      originals, reconstructions: (N, H, W, C) uint8.

    Returns:
      (N,) float64; inf where the two images are identical.

    Raises:
      ValueError: shapes differ or are not (N, H, W, C), or a dtype is not uint8 (floats have
        another data range).
    """
    originals, reconstructions = _checked(originals, reconstructions, "PSNR")
    # One image at a time: 50,000 images converted at once would exceed the memory.
    pairs = zip(originals, reconstructions, strict=True)
    errors = np.array([_mean_squared_error(a, b) for a, b in pairs], np.float64)
    with np.errstate(divide="ignore"):  # identical images: 1 / 0 = inf is intended
        return 10.0 * np.log10(255.0**2 / errors)


def mean_psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """The mean over images of the PSNR, in dB; arguments as in `psnr`.

    The PSNR of the pooled error, a different measure, is at most this (the logarithm is concave).
    The mean is inf if one image is reproduced exactly.

    Raises:
      ValueError: see `psnr`, or there are no images.
    """
    return _mean(psnr(originals, reconstructions), "PSNR")


def ssim(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair (Wang et al. 2004, eq. 13), averaged over channels.

    Means, variances and covariances are weighted by a Gaussian of sigma 1.5 in 11 x 11 pixels;
    the mean is over the windows inside the image. scikit-image's `structural_similarity` gives the
    same values with gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
    channel_axis=-1.

    Args:
      originals, reconstructions: (N, H, W, C) uint8, H and W at least 11.

    Returns:
      (N,) float64 in [-1, 1]; 1 where the two images are identical.

    Raises:
      ValueError: see `psnr`, or the images are smaller than the window.
    """
    originals, reconstructions = _checked(originals, reconstructions, "SSIM")
    if min(originals.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM's window is 11 x 11, got images of {originals.shape[1]} x {originals.shape[2]}"
        )
    pairs = zip(originals, reconstructions, strict=True)
    return np.array([_structural_similarity(a, b) for a, b in pairs], np.float64)


def _mean(values, what):
    if not values.size:
        raise ValueError(f"the mean {what} of no images is not defined")
    return float(values.mean())


def _checked(originals, reconstructions, what):
    originals, reconstructions = np.asarray(originals), np.asarray(reconstructions)
    if originals.ndim != 4 or originals.shape != reconstructions.shape:
        raise ValueError(
            f"{what} needs two (N, H, W, C) of one shape, got {originals.shape} and "
            f"{reconstructions.shape}"
        )
    if originals.dtype != np.uint8 or reconstructions.dtype != np.uint8:
        raise ValueError(
            f"{what} is taken of uint8 images, got {originals.dtype} and {reconstructions.dtype}"
        )
    return originals, reconstructions


def _mean_squared_error(a, b):
    return np.square(a.astype(np.int32) - b.astype(np.int32)).mean()


def _structural_similarity(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    covariance = _windowed(a * b) - mean_a * mean_b
    variances = _windowed(a * a + b * b) - mean_a**2 - mean_b**2
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (likeness / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))).mean()


def _windowed(values):
    """Gaussian-weighted means (H - 10, W - 10, C) over all windows inside (H, W, C)."""
    means = gaussian_filter(values, _SIGMA, radius=_RADIUS, axes=(0, 1))
    return means[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
