"""Generated images against real ones: FID, sFID, Inception Score, precision and recall.

As the evaluator of openai/guided-diffusion (ADM) defines them, on the features of its InceptionV3;
on those of another network, what of them it allows.
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
from repae_jax.evaluation.precision_recall import NEIGHBOURS, precision_recall
from repae_jax.evaluation.reference import has_statistics, read_statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What a network sees in a set of images.

    Attributes:
      name: of the set.
      count: images.
      resolution: pixels along a side.
      pooled, spatial: moments of the two kinds of features, for FID and sFID; only Inception
        gives the spatial ones, else None.
      features: (N, D) float32, the pooled ones, for precision and recall.
      inception_score: of the set by itself; None of another network.
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
    """Real images' features, as far as they are known.

    Attributes:
      name: of the file or folder.
      pooled, spatial: distributions, for FID and sFID; None: not known.
      features: (N, D), for precision and recall; None: not known.
      resolution: pixels along a side; None: not known.
    """

    name: str
    pooled: Gaussian | None
    spatial: Gaussian | None
    features: np.ndarray | None
    resolution: int | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """The figures; None where the reference or the network lacks what they need.

    Attributes:
      count: images that were measured.
      fid, sfid: Fréchet distances of pooled and of spatial features, 0 or more.
      inception_score: from 1 to 1008.
      precision, recall: 0 to 1; None also for fewer images than they need.
    """

    count: int
    fid: float | None
    sfid: float | None
    inception_score: float | None
    precision: float | None
    recall: float | None


class AllAlike(UserError):
    """Images that are all the same."""


def measure(
    images: ImageSet,
    features: Features,
    *,
    batch_size: int,
    progress: bool = False,
) -> Measured:
    """Put images through a network; memory grows by the pooled features, 8 KiB an image.

    Args:
      images: the set.
      features: see `make_features`; only "pool" (B, D) is needed.
      batch_size: images at a time, a multiple of the devices; the last batch is filled up.
      progress: show a bar.

    Raises:
      AllAlike: all images are the same.
      UserError: there is one image.
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
        raise AllAlike(
            f"{images.name}: all {count} images are the same, there is no distribution to measure"
        )
    return Measured(
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
    known, measured = {}, None
    if has_statistics(path):
        known["pooled"] = read_statistics(path)
        if has_statistics(path, spatial=True):
            known["spatial"] = read_statistics(path, spatial=True)
    if not known or has_images(path):
        images = open_images(path, resolution)
        measured = measure(images, features, batch_size=batch_size, progress=progress)
    if measured is None:
        return Reference(str(path), known["pooled"], known.get("spatial"), None, None)
    reference = as_reference(measured)
    # Statistics count as they are: they may be of other images than those beside them.
    return dataclasses.replace(reference, **{"spatial": None, **known}) if known else reference


def as_reference(measured: Measured) -> Reference:
    """Measured images as what others are compared with."""
    return Reference(
        name=measured.name,
        pooled=measured.pooled.gaussian(),
        spatial=measured.spatial and measured.spatial.gaussian(),
        features=measured.features,
        resolution=measured.resolution,
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
    if moments is None or gaussian is None:
        return None
    return frechet_distance(moments, gaussian)


def _softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
