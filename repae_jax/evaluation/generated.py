"""Generated images against real ones: FID, sFID, Inception Score, precision and recall.

As the evaluator of openai/guided-diffusion (ADM) defines them, on the features of its InceptionV3.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np

from repae_jax.errors import UserError
from repae_jax.evaluation.frechet import Gaussian, Moments, frechet_distance
from repae_jax.evaluation.image_sets import ImageSet, filled, has_images, open_images
from repae_jax.evaluation.inception_features import Features
from repae_jax.evaluation.inception_score import InceptionScore
from repae_jax.evaluation.precision_recall import NEIGHBOURS, precision_recall
from repae_jax.evaluation.reference import has_statistics, read_statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What Inception sees in a set of images.

    Attributes:
      name: of the set.
      count: images.
      resolution: pixels along a side.
      pooled, spatial: moments of the two kinds of features, for FID and sFID.
      features: (N, 2048) float32, for precision and recall.
      inception_score: of the set by itself.
    """

    name: str
    count: int
    resolution: int
    pooled: Moments
    spatial: Moments
    features: np.ndarray
    inception_score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Real images' features, as far as they are known.

    Attributes:
      name: of the file or folder.
      pooled, spatial: distributions, for FID and sFID; None: not known.
      features: (N, 2048), for precision and recall; None: not known.
      resolution: pixels along a side; None: not known.
    """

    name: str
    pooled: Gaussian | None
    spatial: Gaussian | None
    features: np.ndarray | None
    resolution: int | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """The figures; None where the reference lacks what they need.

    Attributes:
      count: images that were measured.
      fid, sfid: Fréchet distances of pooled and of spatial features, 0 or more.
      inception_score: from 1 to 1008.
      precision, recall: 0 to 1; None also for fewer images than they need.
    """

    count: int
    fid: float | None
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None


def measure(
    images: ImageSet,
    features: Features,
    *,
    batch_size: int,
    progress: bool = False,
) -> Measured:
    """Put images through Inception; memory grows by 8 KiB an image.

    Args:
      images: the set.
      features: see `make_features`.
      batch_size: images at a time, a multiple of the devices; the last batch is filled up.
      progress: show a bar.

    Raises:
      UserError: there is one image, or all are the same.
    """
    from tqdm import tqdm

    count = images.count
    if count < 2:
        raise UserError(f"{images.name} holds 1 image: a distribution needs at least 2")
    pooled, spatial = Moments(2048), Moments(2023)
    score, kept = InceptionScore(), np.empty((count, 2048), np.float32)
    first, different, start = None, False, 0
    with tqdm(total=count, unit="image", desc=images.name, disable=not progress) as bar:
        for batch in images.batches(batch_size):
            seen = jax.device_get(features(filled(batch, batch_size)))
            seen = {name: values[: len(batch)] for name, values in seen.items()}
            pooled.update(seen["pool"])
            spatial.update(seen["spatial"])
            score.update(_softmax(seen["logits"]))
            kept[start : start + len(batch)] = seen["pool"]
            first = batch[0] if first is None else first
            different = different or bool((batch != first).any())
            start += len(batch)
            bar.update(len(batch))
    if not different:
        raise UserError(
            f"{images.name}: all {count} images are the same, there is no distribution to measure"
        )
    score = score.result()
    return Measured(images.name, count, images.resolution, pooled, spatial, kept, score)


def read_reference(
    path: str | os.PathLike,
    features: Features,
    *,
    batch_size: int,
    resolution: int | None = None,
    progress: bool = False,
) -> Reference:
    """A reference's features: from the statistics of an `.npz`, and from images that there are.

    Args:
      path: ADM's reference batch, or what `open_images` takes.
      features, batch_size, progress: as in `measure`.
      resolution: to crop pictures to.

    Raises:
      UserError: it is neither, or damaged.
    """
    path = pathlib.Path(path)
    pooled = spatial = measured = None
    if has_statistics(path):
        pooled = read_statistics(path)
        spatial = (
            read_statistics(path, spatial=True) if has_statistics(path, spatial=True) else None
        )
    if pooled is None or has_images(path):
        images = open_images(path, resolution)
        measured = measure(images, features, batch_size=batch_size, progress=progress)
    if measured is not None and pooled is None:
        pooled, spatial = measured.pooled.gaussian(), measured.spatial.gaussian()
    return Reference(
        str(path),
        pooled,
        spatial,
        None if measured is None else measured.features,
        None if measured is None else measured.resolution,
    )


def compare(samples: Measured, reference: Reference, *, progress: bool = False) -> Scores:
    """All figures that the reference allows.

    Raises:
      UserError: the two have different resolutions.
    """
    check_resolutions(samples, reference)
    balls = None
    if reference.features is not None and min(samples.count, len(reference.features)) > NEIGHBOURS:
        balls = precision_recall(reference.features, samples.features, progress=progress)
    return Scores(
        count=samples.count,
        fid=_distance(samples.pooled, reference.pooled),
        sfid=_distance(samples.spatial, reference.spatial),
        inception_score=samples.inception_score,
        precision=balls and balls.precision,
        recall=balls and balls.recall,
    )


def check_resolutions(samples: ImageSet | Measured, reference: Reference) -> None:
    """Raise UserError if the two have different resolutions."""
    if reference.resolution not in (None, samples.resolution):
        raise UserError(
            f"{samples.name} has images of {samples.resolution} x {samples.resolution} pixels, "
            f"{reference.name} of {reference.resolution} x {reference.resolution}: compare equal "
            "sizes (--resolution crops pictures)"
        )


def _distance(moments, gaussian):
    return None if gaussian is None else frechet_distance(moments, gaussian)


def _softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
