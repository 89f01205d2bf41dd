"""Comparison of generated and real images: FID, sFID, Inception Score, precision and recall.

The evaluator of openai/guided-diffusion (ADM) defines them, on the features of its InceptionV3.
Another network without spatial features or logits allows only some of them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
import numpy as np

from repae_jax.errors import UserError
from repae_jax.evaluation.frechet import Gaussian, Moments, frechet_distance
from repae_jax.evaluation.image_sets import ImageSet, has_images, open_images, pad_batch
from repae_jax.evaluation.inception_features import Features
from repae_jax.evaluation.inception_score import InceptionScore
from repae_jax.evaluation.precision_recall import NEIGHBORS, precision_recall
from repae_jax.evaluation.reference import ADM, CLEAN, has_statistics, read_statistics
from repae_jax.evaluation.resized_images import open_clean


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredImages:
    """A network's features of a set of images, and their moments.

    Attributes:
      name: the set's name.
      count: number of images.
      resolution: pixels along a side.
      pooled, spatial: moments of pooled and of spatial features, for FID and sFID; `spatial` is
        None for a network other than Inception.
      features: (N, D) float32 pooled features, for precision and recall.
      inception_score: the set's Inception Score; None for a network other than Inception.
    """

    name: str
    count: int
    resolution: int
    pooled: Moments
    spatial: Moments | None
    features: np.ndarray
    inception_score: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The known statistics and features of real images; None for unknown ones.

    Attributes:
      name: the file or folder.
      pooled, spatial: distributions of pooled and of spatial features, for FID and sFID.
      features: (N, D) pooled features, for precision and recall.
      resolution: pixels along a side.
    """

    name: str
    pooled: Gaussian | None
    spatial: Gaussian | None
    features: np.ndarray | None
    resolution: int | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """The measures; None if the reference or the network lacks the features for a measure.

    Attributes:
      count: number of measured images.
      fid, sfid: Fréchet distances of pooled and of spatial features, 0 or more.
      inception_score: 1 to 1008.
      precision, recall: 0 to 1; None also for too few images.
    """

    count: int
    fid: float | None
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None


class IdenticalImages(UserError):
    """Error for a set whose images are all identical."""


def measure(
    images: ImageSet,
    features: Features,
    *,
    batch_size: int,
    progress: bool = False,
) -> MeasuredImages:
    """Compute a network's features of images; memory holds the pooled ones, 8 KiB per image.

    Args:
      images: the set.
      features: see `make_features`; only "pool" (B, D) is required.
      batch_size: images per batch, a multiple of the number of devices; the last batch is padded.
      progress: show a bar.

    Raises:
      IdenticalImages: all images are identical.
      UserError: the set has a single image.
    """
    from tqdm import tqdm

    count = images.count
    if count < 2:
        raise UserError(f"{images.name} holds 1 image: a distribution needs at least 2")
    moments: dict[str, Moments] = {}
    score, kept, first, different, start = InceptionScore(), None, None, False, 0
    with tqdm(total=count, unit="image", desc=images.name, disable=not progress) as bar:
        for batch in images.batches(batch_size):
            seen = jax.device_get(features(pad_batch(batch, batch_size)))
            seen = {name: values[: len(batch)] for name, values in seen.items()}
            for name in ("pool", "spatial"):
                if name in seen:
                    moments.setdefault(name, Moments(seen[name].shape[1])).update(seen[name])
            if "logits" in seen:
                score.update(_softmax(seen["logits"]))
            if kept is None:
                kept = np.empty((count, seen["pool"].shape[1]), np.float32)
            kept[start : start + len(batch)] = seen["pool"]
            first = batch[0] if first is None else first
            different = different or bool((batch != first).any())
            start += len(batch)
            bar.update(len(batch))
    if not different:
        raise IdenticalImages(
            f"{images.name}: all {count} images are the same, there is no distribution to measure"
        )
    return MeasuredImages(
        name=images.name,
        count=count,
        resolution=images.resolution,
        pooled=moments["pool"],
        spatial=moments.get("spatial"),
        features=kept,
        inception_score=score.result() if score.scores().size else None,
    )


def read_reference(
    path: str | os.PathLike,
    features: Features,
    *,
    batch_size: int,
    resolution: int | None = None,
    resizing: str = ADM,
    progress: bool = False,
) -> Reference:
    """Read a reference: the statistics in an `.npz`, and features computed from its images.

    Args:
      path: ADM's reference batch, or any path that `open_images` accepts.
      features, batch_size, progress: as in `measure`.
      resolution: the side in pixels to which picture files are cropped.
      resizing: `reference.ADM`; or `CLEAN` for `features` of images that `open_clean` resized.

    Raises:
      UserError: the path is no reference, damaged, or holds statistics of another resizing.
    """
    path = pathlib.Path(path)
    known, measured = {}, None
    if has_statistics(path):
        known["pooled"] = read_statistics(path, resizing=resizing)
        if has_statistics(path, spatial=True):
            known["spatial"] = read_statistics(path, spatial=True, resizing=resizing)
    if not known or has_images(path):
        images = (open_clean if resizing == CLEAN else open_images)(path, resolution)
        measured = measure(images, features, batch_size=batch_size, progress=progress)
    if measured is None:
        return Reference(str(path), known["pooled"], known.get("spatial"), None, None)
    reference = as_reference(measured)
    # Stored statistics take precedence: they may come from other images than the file's.
    return dataclasses.replace(reference, **{"spatial": None, **known}) if known else reference


def as_reference(measured: MeasuredImages) -> Reference:
    """Make a reference from measured images."""
    return Reference(
        name=measured.name,
        pooled=measured.pooled.gaussian(),
        spatial=measured.spatial and measured.spatial.gaussian(),
        features=measured.features,
        resolution=measured.resolution,
    )


def compare(samples: MeasuredImages, reference: Reference, *, progress: bool = False) -> Scores:
    """Compute all measures that the reference allows.

    Raises:
      UserError: samples and reference have different resolutions.
    """
    check_resolutions(samples, reference)
    balls = None
    if reference.features is not None and min(samples.count, len(reference.features)) > NEIGHBORS:
        balls = precision_recall(reference.features, samples.features, progress=progress)
    return Scores(
        count=samples.count,
        fid=_distance(samples.pooled, reference.pooled),
        sfid=_distance(samples.spatial, reference.spatial),
        inception_score=samples.inception_score,
        precision=balls and balls.precision,
        recall=balls and balls.recall,
    )


def check_resolutions(samples: ImageSet | MeasuredImages, reference: Reference) -> None:
    """Raise UserError if samples and reference have different resolutions."""
    if reference.resolution not in (None, samples.resolution):
        raise UserError(
            f"{samples.name} has images of {samples.resolution} x {samples.resolution} pixels, "
            f"{reference.name} of {reference.resolution} x {reference.resolution}: compare equal "
            "sizes (--resolution crops pictures)"
        )


def _distance(moments, gaussian):
    if moments is None or gaussian is None:
        return None
    return frechet_distance(moments, gaussian)


def _softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
