"""What a latent space looks like: principal components as colours, statistics, spectrum."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Moments of latents (N, h, w, c); variances are the population's (divided by n).

    mean, std: (c,) of each channel, over images and positions.
    variance: of all values together, about their common mean.
    """

    mean: np.ndarray
    std: np.ndarray
    variance: float


def latent_statistics(latents: np.ndarray) -> LatentStatistics:
    """The moments of latents (N, h, w, c), accumulated in float64."""
    latents = _checked(latents)
    axes = (0, 1, 2)
    return LatentStatistics(latents.mean(axes), latents.std(axes), float(latents.var()))


def variance_within(latents: np.ndarray) -> float:
    """How much of the variance of latents (N, h, w, c) lies within images, between positions.

    Of each channel, about its own mean, and summed over channels: scaling or shifting the latents
    changes nothing. 0 is flat images, 1 is images with one and the same mean; NaN without variance.
    """
    latents = _checked(latents)
    return _share(latents.var((1, 2)).mean(0), latents)


def variance_in_common(latents: np.ndarray) -> float:
    """How much of the variance of latents (N, h, w, c) is a pattern that all images share.

    The variance over positions of the mean image, of each channel about its own mean, and summed
    over channels: scaling or shifting the latents changes nothing. 1 is latents that tell nothing
    of their image, however much they vary from one position to the next; of unrelated images it
    is about 1 / N. NaN without variance.
    """
    latents = _checked(latents)
    return _share(latents.mean(0).var((0, 1)), latents)


def pca_colours(latent_sets: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Shows latents as pictures: the first three principal components as red, green, blue.

    As in the REPA-E paper's pictures of latent spaces. Each set is fitted on its own, over all
    images and positions, so colours mean the same within a set and nothing across sets: compare
    structure (edges, noise, flat areas), not hues. Each component is stretched from its 1st to
    its 99th percentile, which a few outliers cannot wash out; one whose percentiles coincide
    becomes mid-grey. With fewer than three channels the last component is repeated, so one
    channel gives grey levels.

    Args:
      latent_sets: arrays (N, h, w, c) of floats; N, h, w and c may differ between sets.

    Returns:
      one uint8 (N, h, w, 3) for each set.

    Raises:
      ValueError: a set is empty, not four-dimensional, or not finite.
    """
    return [_colours(_checked(latents)) for latents in latent_sets]


def power_spectrum(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radially averaged power of latents (N, h, w, c): how much detail of each size they hold.

    Power is |FFT|^2 / (h w) after each channel's mean is removed, averaged over images, channels
    and the frequencies in a ring one step wide; white noise gives its variance at every
    frequency. The corners of the plane, above the Nyquist frequency, are left out.

    Returns:
      frequencies, (min(h, w) // 2 + 1,) in cycles per position, from 0 to at most 0.5, and the
      power at each, of the same shape.

    Raises:
      ValueError: as `pca_colours`.
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
    """What each channel's variance, (c,), is of the whole, all channels together."""
    whole = latents.var((0, 1, 2)).sum()
    return float(variances.sum() / whole) if whole else float("nan")


def _colours(latents):
    channels = latents.shape[-1]
    values = latents.reshape(-1, channels)
    values = values - values.mean(0)
    _, vectors = np.linalg.eigh(values.T @ values)  # ascending
    axes = vectors[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: fix it, so that a picture is the same on every machine.
    largest = np.abs(axes).argmax(0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    components = values @ axes
    scale = np.sqrt(np.square(values).mean())
    colours = np.stack([_stretched(column, scale) for column in components.T], axis=-1)
    colours = colours[:, [min(index, channels - 1) for index in range(3)]]
    return colours.reshape(*latents.shape[:3], 3)


def _stretched(component, scale):
    low, high = np.percentile(component, (1, 99))
    if high - low <= 1e-6 * scale:  # rounding errors only, which no one wants to see amplified
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
