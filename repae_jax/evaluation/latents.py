"""Views of a latent space: principal components as colors, statistics, power spectrum."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Moments of latents (N, h, w, c); variances are the population's (divided by n).

    Attributes:
      mean, std: (c,) mean and standard deviation of each channel, over images and positions.
      variance: the variance of all values about their common mean.
    """

    mean: np.ndarray
    std: np.ndarray
    variance: float


def latent_statistics(latents: np.ndarray) -> LatentStatistics:
    """The moments of latents (N, h, w, c), accumulated in float64."""
    latents = _checked(latents)
    axes = (0, 1, 2)
    return LatentStatistics(latents.mean(axes), latents.std(axes), float(latents.var()))


def spatial_variance(latents: np.ndarray) -> float:
    """The variance over positions of latents (N, h, w, c), averaged over images and channels.

    It falls to 0 when the latents of each image become constant (REPA-E, appendix B).
    """
    return float(_checked(latents).var((1, 2)).mean())


def total_variation(latents: np.ndarray) -> float:
    """The total variation of latents (N, h, w, c), averaged over images (REPA-E, appendix B).

    It is the sum of absolute differences of neighbors, horizontally and vertically, over positions
    and channels: the anisotropic form.
    """
    latents = _checked(latents)
    return float(sum(np.abs(np.diff(latents, axis=axis)).sum() for axis in (1, 2)) / len(latents))


def variance_within(latents: np.ndarray) -> float:
    """The fraction of the variance of latents (N, h, w, c) that lies within images.

    It is the variance over positions, averaged over images and summed over channels, divided by the
    sum of the channels' variances; the scale and the mean of the latents cancel. 0: images are
    constant over positions. 1: all images have the same mean. NaN: the variance is 0.
    """
    latents = _checked(latents)
    return _share(latents.var((1, 2)).mean(0), latents)


def variance_in_common(latents: np.ndarray) -> float:
    """The fraction of the variance of latents (N, h, w, c) that is a pattern shared by all images.

    It is the variance over positions of the mean image, summed over channels, divided by the sum of
    the channels' variances; the scale and the mean of the latents cancel. 1: all images have the
    same latents, which vary over positions only. About 1 / N: the images are unrelated. NaN: the
    variance is 0.
    """
    latents = _checked(latents)
    return _share(latents.mean(0).var((0, 1)), latents)


def pca_colors(latent_sets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Show latents as pictures: the first three principal components as red, green, blue.

    The REPA-E paper's pictures of latent spaces do the same. Each set is fitted separately, over
    all images and positions, so colors are comparable only within a set; across sets, compare
    structure (edges, noise, flat areas). Each component is stretched from its 1st to its 99th
    percentile, which makes it robust to outliers; a component whose percentiles coincide becomes
    mid-gray. With fewer than three channels the last component is repeated, so one channel gives
    gray levels.

    Args:
      latent_sets: arrays (N, h, w, c) of floats; N, h, w and c may differ between sets.

    Returns:
      One uint8 (N, h, w, 3) per set.

    Raises:
      ValueError: a set is empty, not four-dimensional, or not finite.
    """
    return [_colors(_checked(latents)) for latents in latent_sets]


def power_spectrum(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radially averaged power spectrum of latents (N, h, w, c).

    Power is |FFT|^2 / (h w) after each channel's mean is removed, averaged over images, channels
    and the frequencies in a ring one step wide; white noise gives its variance at every
    frequency. The corners of the plane, above the Nyquist frequency, are left out.

    Returns:
      Frequencies (min(h, w) // 2 + 1,) in cycles per position, from 0 to at most 0.5, and the
      power at each, of the same shape.

    Raises:
      ValueError: the latents are empty, not four-dimensional, or not finite.
    """
    latents = _checked(latents)
    _, height, width, _ = latents.shape
    transform = np.fft.fft2(latents - latents.mean((0, 1, 2)), axes=(1, 2))
    power = np.square(np.abs(transform)).mean((0, 3)) / (height * width)
    side = min(height, width)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    ring = np.rint(radius * side).astype(int)
    rings = np.arange(side // 2 + 1)
    return rings / side, np.array([power[ring == index].mean() for index in rings])


def _share(variances, latents):
    """The sum of `variances` (c,) as a fraction of the sum of the channels' variances."""
    whole = latents.var((0, 1, 2)).sum()
    return float(variances.sum() / whole) if whole else float("nan")


def _colors(latents):
    channels = latents.shape[-1]
    values = latents.reshape(-1, channels)
    values = values - values.mean(0)
    _, vectors = np.linalg.eigh(values.T @ values)  # ascending
    axes = vectors[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary; fixing it makes a picture the same on every machine.
    largest = np.abs(axes).argmax(0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    components = values @ axes
    scale = np.sqrt(np.square(values).mean())
    colors = np.stack([_stretched(column, scale) for column in components.T], axis=-1)
    colors = colors[:, [min(index, channels - 1) for index in range(3)]]
    return colors.reshape(*latents.shape[:3], 3)


def _stretched(component, scale):
    low, high = np.percentile(component, (1, 99))
    if high - low <= 1e-6 * scale:  # stretching would amplify rounding errors
        return np.full(component.shape, 128, np.uint8)
    unit = np.clip((component - low) / (high - low), 0.0, 1.0)
    return np.rint(255.0 * unit).astype(np.uint8)


def _checked(latents):
    latents = np.asarray(latents, np.float64)
    if latents.ndim != 4 or not latents.size:
        raise ValueError(f"latents must be (N, h, w, c) and not empty, got {latents.shape}")
    if not np.isfinite(latents).all():
        raise ValueError("latents must be finite, got NaN or infinite values")
    return latents
