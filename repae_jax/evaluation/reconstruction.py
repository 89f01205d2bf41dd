"""How much of an image survives the autoencoder."""

import numpy as np


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, 10 log10(255^2 / MSE), in dB.

    The mean squared error is over all pixels and channels of one image.

    Args:
      originals, reconstructions: (N, H, W, C) uint8.

    Returns:
      (N,) float64; inf where the two images are identical.

    Raises:
      ValueError: shapes differ or are not (N, H, W, C), or a dtype is not uint8 (floats would
        have another data range).
    """
    originals, reconstructions = np.asarray(originals), np.asarray(reconstructions)
    if originals.ndim != 4 or originals.shape != reconstructions.shape:
        raise ValueError(
            f"PSNR needs two (N, H, W, C) of one shape, got {originals.shape} and "
            f"{reconstructions.shape}"
        )
    if originals.dtype != np.uint8 or reconstructions.dtype != np.uint8:
        raise ValueError(
            f"PSNR is taken of uint8 images, got {originals.dtype} and {reconstructions.dtype}"
        )
    # One image at a time: 50,000 images widened together would not fit in memory.
    pairs = zip(originals, reconstructions, strict=True)
    errors = np.array([_mean_squared_error(a, b) for a, b in pairs], np.float64)
    with np.errstate(divide="ignore"):  # identical images: 1 / 0 = inf is meant
        return 10.0 * np.log10(255.0**2 / errors)


def mean_psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Mean over images of each image's PSNR, in dB; arguments as in `psnr`.

    This is not the PSNR of the pooled error, which is never larger (the logarithm is concave).
    inf as soon as one image is reproduced exactly: a finite stand-in would be made up.

    Raises:
      ValueError: as `psnr`, or there are no images.
    """
    values = psnr(originals, reconstructions)
    if not values.size:
        raise ValueError("the mean PSNR of no images is not defined")
    return float(values.mean())


def _mean_squared_error(a, b):
    return np.square(a.astype(np.int32) - b.astype(np.int32)).mean()
