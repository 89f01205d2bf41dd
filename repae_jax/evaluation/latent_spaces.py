"""Comparison of the latent spaces of VAEs, as in the REPA-E paper's figure of latent spaces."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from repae_jax.errors import UserError
from repae_jax.evaluation.curves import channels_figure, spectra_figure
from repae_jax.evaluation.image_sets import ImageSet, pad_batch
from repae_jax.evaluation.latents import (
    LatentStatistics,
    latent_statistics,
    pca_colors,
    power_spectrum,
    spatial_variance,
    total_variation,
)
from repae_jax.evaluation.report import Section, write_report
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.utils.figures import pca_figure, save_png

HIGH = 0.25  # cycles per position: half of the Nyquist frequency


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSpace:
    """One VAE's latents of the images.

    Attributes:
      name: the VAE's name in the pictures.
      latents: (N, h, w, c) posterior means before normalization.
      statistics: the latents' moments.
      frequencies, power: see `power_spectrum`; the power is divided by the variance within
        channels, so that VAEs of different scales can be compared.
    """

    name: str
    latents: np.ndarray
    statistics: LatentStatistics
    frequencies: np.ndarray
    power: np.ndarray

    @property
    def summary(self) -> str:
        """The latents' shape, their variation over positions and the share of fine detail."""
        height, width, channels = self.latents.shape[1:]
        return (
            f"latents {height} x {width} x {channels}; "
            f"{spatial_variance(self.latents):.4g} within images, "
            f"total variation {total_variation(self.latents):.4g}; "
            f"{100 * self.high_share:.0f} % of the spectrum in its upper half"
        )

    @property
    def high_share(self) -> float:
        """The fraction, 0 to 1, of the spectrum summed over rings that lies above `HIGH`."""
        whole = self.power[1:].sum()
        return float(self.power[self.frequencies > HIGH].sum() / whole) if whole else 0.0


def measure_latents(
    name: str, vae: PretrainedVAE, images: ImageSet, batch_size: int, *, progress: bool = False
) -> LatentSpace:
    """Encode all images and measure their latents, which all stay in memory.

    Raises:
      UserError: the VAE's factor does not divide the images' sides, or latents are NaN or infinite.
    """
    from tqdm import tqdm

    if images.resolution % vae.module.factor:
        raise UserError(
            f"{images.name} has images of {images.resolution} x {images.resolution} pixels, which "
            f"the factor {vae.module.factor} of {name} does not divide: give --resolution"
        )
    parts = []
    with tqdm(total=images.count, unit="image", desc=name, disable=not progress) as bar:
        for batch in images.batches(batch_size):
            means = vae.encode(pad_batch(batch, batch_size)).mean
            parts.append(np.asarray(means, np.float32)[: len(batch)])
            bar.update(len(batch))
    latents = np.concatenate(parts)
    if not np.isfinite(latents).all():
        raise UserError(f"{name} makes latents that are NaN or infinite: its weights are damaged")
    statistics = latent_statistics(latents)
    frequencies, power = power_spectrum(latents)
    within = max(float(np.square(statistics.std).mean()), np.finfo(np.float64).tiny)
    return LatentSpace(name, latents, statistics, frequencies, power / within)


def write_latents_report(
    folder: pathlib.Path, spaces: Sequence[LatentSpace], shown: np.ndarray, count: int
) -> pathlib.Path:
    """Write `report.html` and its pictures into a folder.

    Args:
      folder: an existing folder.
      spaces: the VAEs' latent spaces.
      shown: (N, H, W, 3) uint8, the first images.
      count: number of images that were encoded.

    Returns:
      The page's path.
    """
    colors = pca_colors([space.latents[: len(shown)] for space in spaces])
    named = dict(zip((space.name for space in spaces), colors, strict=True))
    spectra = {space.name: (space.frequencies, space.power) for space in spaces}
    pictures = {
        "The latent spaces": (
            "colours",
            pca_figure(shown, named),
            "The first three principal components as red, green and blue, fitted to each VAE by "
            "itself: compare structure, not hues. Speckles are noise of high frequency, large "
            "even areas a latent space that is too smooth.",
        ),
        "Power over frequency": (
            "spectra",
            spectra_figure(spectra),
            "Radially averaged, divided by the variance; white noise is a level line at 1. What "
            "falls steeply is smooth.",
        ),
        "Channels": (
            "channels",
            channels_figure({s.name: (s.statistics.mean, s.statistics.std) for s in spaces}),
            "Over all images and positions, not normalized.",
        ),
    }
    sections = []
    for title, (name, picture, text) in pictures.items():
        path = save_png(folder / f"{name}.png", picture)
        sections.append(Section(title, text, path, alt=title))
    return write_report(
        folder / "report.html",
        title=f"Latents of {count} images",
        summary=[
            (space.name, f"{space.statistics.variance:.3g}", f"variance; {space.summary}")
            for space in spaces
        ],
        sections=sections,
    )
