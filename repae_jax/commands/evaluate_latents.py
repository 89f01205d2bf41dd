"""The `evaluate-latents` command: latent spaces side by side, as the paper's figure shows them."""

import argparse
import dataclasses
import pathlib

import numpy as np

from repae_jax.config.needs import check_nothing_missing, missing_paths, missing_vaes
from repae_jax.errors import UserError, batch_size_advised
from repae_jax.evaluation.curves import channels_figure, spectra_figure
from repae_jax.evaluation.image_sets import ImageSet, filled, open_images
from repae_jax.evaluation.latents import (
    LatentStatistics,
    latent_statistics,
    pca_colours,
    power_spectrum,
)
from repae_jax.evaluation.report import Section, write_report
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.utils.figures import pca_figure, save_png
from repae_jax.utils.lock import writing_in
from repae_jax.utils.schema import Batch, Count, checked

HIGH = 0.25  # cycles per position: half of what a grid can hold


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSpace:
    """One VAE's latents of the images.

    Attributes:
      name: in the pictures.
      latents: (N, h, w, c) posterior means, not normalised.
      statistics: of them.
      frequencies, power: see `power_spectrum`; the power is divided by the variance within
        channels, so that VAEs of different scales can be compared.
    """

    name: str
    latents: np.ndarray
    statistics: LatentStatistics
    frequencies: np.ndarray
    power: np.ndarray

    @property
    def high_share(self) -> float:
        """The part of the spectrum, summed over rings, that lies above `HIGH`."""
        whole = self.power[1:].sum()
        return float(self.power[self.frequencies > HIGH].sum() / whole) if whole else 0.0


@batch_size_advised()
def evaluate_latents_command(options: argparse.Namespace) -> int:
    """Encode `options.images` by each of `options.vaes`, and write a report; returns 0.

    Raises:
      UserError: bad options, images or VAEs.
    """
    for name, kind in (("shown", Count), ("count", Count), ("batch_size", Batch)):
        checked(getattr(options, name), kind, source=f"--{name.replace('_', '-')}")
    vaes = parse_vaes(options.vaes)
    missing = missing_paths({"IMAGES": options.images})
    check_nothing_missing([*missing_vaes(*vaes.values()), *missing])
    images = open_images(options.images, options.resolution)
    images = images.first(min(options.count, images.count))
    with writing_in(options.output):
        spaces = []
        for name, path in vaes.items():
            vae = PretrainedVAE.from_pretrained(path)
            progress = not options.quiet
            spaces.append(measure_latents(name, vae, images, options.batch_size, progress=progress))
        shown = next(images.batches(min(options.shown, images.count)))
        path = _write(options.output, spaces, shown, images)
    for space in spaces:
        print(_summary(space))
    print(f"report: {path}")
    return 0


def parse_vaes(words: list[str]) -> dict[str, str]:
    """{name: path} of "NAME=PATH" or "PATH", which is its own name.

    Raises:
      UserError: two have one name.
    """
    found = {}
    for word in words:
        name, sign, path = word.partition("=")
        name, path = (name, path) if sign else (pathlib.PurePath(word).name, word)
        if not name or not path:
            raise UserError(f"{word!r} names no VAE: write NAME=VAE, or the VAE alone")
        if name in found:
            raise UserError(f"two VAEs are called {name!r}: write NAME=VAE to name them")
        found[name] = path
    return found


def measure_latents(
    name: str, vae: PretrainedVAE, images: ImageSet, batch_size: int, *, progress: bool = False
) -> LatentSpace:
    """Encode all images; memory holds their latents.

    Raises:
      UserError: the images' sides do not suit the VAE, or its latents are not finite.
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
            means = vae.encode(filled(batch, batch_size)).mean
            parts.append(np.asarray(means, np.float32)[: len(batch)])
            bar.update(len(batch))
    latents = np.concatenate(parts)
    if not np.isfinite(latents).all():
        raise UserError(f"{name} makes latents that are NaN or infinite: its weights are damaged")
    statistics = latent_statistics(latents)
    frequencies, power = power_spectrum(latents)
    within = max(float(np.square(statistics.std).mean()), np.finfo(np.float64).tiny)
    return LatentSpace(name, latents, statistics, frequencies, power / within)


def _write(folder, spaces, shown, images):
    colours = pca_colours([space.latents[: len(shown)] for space in spaces])
    named = dict(zip((space.name for space in spaces), colours, strict=True))
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
            "Over all images and positions, not normalised.",
        ),
    }
    sections = []
    for title, (name, picture, text) in pictures.items():
        path = save_png(folder / f"{name}.png", picture)
        sections.append(Section(title, text, path, alt=title))
    return write_report(
        folder / "report.html",
        title=f"Latents of {images.count} images",
        summary=[
            (space.name, f"{space.statistics.variance:.3g}", f"variance; {_details(space)}")
            for space in spaces
        ],
        sections=sections,
    )


def _details(space):
    height, width, channels = space.latents.shape[1:]
    return (
        f"latents {height} x {width} x {channels}; "
        f"{100 * space.high_share:.0f} % of the spectrum in its upper half"
    )


def _summary(space):
    return f"{space.name}: variance {space.statistics.variance:.4g}, {_details(space)}"
