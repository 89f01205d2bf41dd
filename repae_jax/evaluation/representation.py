"""Measures of a backbone's representation of images, per block and noise level.

As in REPA (arXiv 2410.06940, section 3), the measures are CKNNA with the teacher and linear probes
of the classes; as in iREPA (arXiv 2512.10794), the spatial structure of the tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.data.pipeline import eval_batches
from repae_jax.data.source import Source, check_images
from repae_jax.errors import UserError
from repae_jax.evaluation.alignment import (
    TOP_K,
    cknna_or_nan,
    normalize_features,
    warn_of_undefined,
)
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.evaluation.spatial import SpatialStructure, patches, spatial_measures
from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.conditioning.base import null_condition, repeated
from repae_jax.models.encoders.base import Encoder, patch_tokens
from repae_jax.models.networks import Models, condition_of, teacher_tokens
from repae_jax.models.tokenizers.base import encode
from repae_jax.objectives.paths import PATHS, interpolate
from repae_jax.parallel.mesh import batch_sharding, place, replicated
from repae_jax.runs.open_run import sampling_weights
from repae_jax.runs.state import TrainState
from repae_jax.utils.images import to_float


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features with one row per image; tokens are averaged over positions.

    Attributes:
      labels: (N,) classes.
      backbone: time t -> (depth, N, D) tokens after each block.
      latents: (N, h w c) normalized posterior means.
      teachers: name -> (N, D_k).
      spatial: the measures of the tokens' spatial structure per image, if they were computed.
    """

    labels: np.ndarray
    backbone: Mapping[float, np.ndarray]
    latents: np.ndarray
    teachers: Mapping[str, np.ndarray]
    spatial: SpatialStructure | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Representation:
    """The measures of a run's representation.

    Attributes:
      times: noise levels t, from 0 (an image) to 1 (noise).
      alignment: teacher -> CKNNA (times, depth) with the backbone's tokens; NaN where undefined, as
        for collapsed tokens.
      latents: teacher -> CKNNA with the VAE's latents; NaN if undefined.
      probes: accuracy (times, depth) of linear probes of the backbone's tokens, 0 to 1; None if the
        images have one class.
      probe_latents: accuracy of a linear probe of the latents; None if the images have one class.
      probe_teachers: teacher -> accuracy of a linear probe of its tokens.
      spatial: the mean measures of the tokens' spatial structure, if the features have them.
    """

    times: tuple[float, ...]
    alignment: Mapping[str, np.ndarray]
    latents: Mapping[str, float]
    probes: np.ndarray | None
    probe_latents: float | None
    probe_teachers: Mapping[str, float]
    spatial: SpatialStructure | None = None


Extract = Callable[..., dict[str, Any]]


def extract_features(
    config: ConfigDict,
    models: Models,
    state: TrainState,
    source: Source,
    times: Sequence[float],
    *,
    count: int,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    extract: Extract | None = None,
    spatial: bool = False,
) -> Features:
    """Compute features of images with the run's VAE, averaged backbone and teachers.

    The result takes 4 x images x times x blocks x width bytes: 3.9 GB for 10,000 images at three
    times in an XL.

    The backbone gets the null condition if it has one, because a label would reveal the class to
    the probe.

    Args:
      config: the run's configuration.
      models: its networks, with a backbone.
      state: its state.
      source: labeled images; a random subset of `count` is taken, because the first images may
        have few classes.
      times: noise levels in [0, 1].
      count: number of images.
      batch_size: images per batch.
      seed: seed of the subset and of the noise.
      progress: show a bar.
      extract: from `make_extract`, for a run that is measured more than once.
      spatial: also measure the spatial structure of the tokens, without `extract`.

    Raises:
      UserError: the run has no backbone or teacher, the source has no or too few images, or a time
        is outside [0, 1].
    """
    from tqdm import tqdm

    _check(models, source, times, count)
    extract = extract or make_extract(config, models, spatial=spatial)
    weights = {**sampling_weights(state), "teachers": state.frozen.get("teachers", {})}
    source = random_subset(source, count, seed)
    labels, found = np.empty(count, np.int64), None
    with tqdm(total=count, unit="image", desc="features", disable=not progress) as bar:
        for number, batch in enumerate(eval_batches(source, batch_size)):
            images, classes = batch["image"], batch["label"]
            seeds = np.array([seed, number], np.uint32)
            seen = extract(
                weights, pad_batch(images, batch_size), pad_batch(classes, batch_size), seeds,
                np.asarray(times, np.float32),
            )  # fmt: skip
            seen = jax.device_get(seen)
            if found is None:
                found = jax.tree.map(
                    lambda a: np.empty((*a.shape[:-2], count, a.shape[-1]), np.float32), seen
                )
            start = number * batch_size
            labels[start : start + len(images)] = classes
            _fill(found, seen, start, len(images))
            bar.update(len(images))
    return Features(
        labels=labels,
        backbone=dict(zip(times, found["backbone"], strict=True)),
        latents=found["latents"],
        teachers=found["teachers"],
        spatial=SpatialStructure(**found["spatial"]) if "spatial" in found else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Subset:
    """A subset of a source."""

    source: Source
    indexes: np.ndarray

    def __len__(self):
        return len(self.indexes)

    def __getitem__(self, index):
        return self.source[int(self.indexes[index])]


def random_subset(source: Source, count: int, seed: int) -> _Subset:
    """Choose `count` random elements of a source by the seed; they keep the source's order."""
    chosen = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return _Subset(source, np.sort(chosen))


def _fill(arrays, parts, start, count):
    """Write the first rows of `parts` (..., B, D) to `arrays` (..., N, D) from `start` on."""

    def write(array, part):
        array[..., start : start + count, :] = part[..., :count, :]

    jax.tree.map(write, arrays, parts)


def measure_representation(
    features: Features, *, topk: int = TOP_K, progress: bool = False
) -> Representation:
    """Compute CKNNA and linear probes of extracted features.

    A probe is a ridge classifier on standardized features with the penalty chosen by leave-one-out
    cross-validation. It is fitted on every other image of each class and tested on the rest.

    Raises:
      UserError: see `cknna`; features that are equal for all images give NaN instead.
    """
    from tqdm import tqdm

    times, depth = tuple(features.backbone), len(next(iter(features.backbone.values())))
    teachers = {name: normalize_features(tokens) for name, tokens in features.teachers.items()}
    classes = len(np.unique(features.labels)) > 1
    alignment = {name: np.zeros((len(times), depth)) for name in teachers}
    probes = np.zeros((len(times), depth)) if classes else None
    with tqdm(total=len(times) * depth, desc="alignment", disable=not progress) as bar:
        for row, time in enumerate(times):
            for block, tokens in enumerate(features.backbone[time]):
                ready = normalize_features(tokens)
                for name, teacher in teachers.items():
                    alignment[name][row, block] = cknna_or_nan(ready, teacher, topk)
                if classes:
                    probes[row, block] = probe(tokens, features.labels)
                bar.update()
    ready = normalize_features(features.latents)
    latents = {name: cknna_or_nan(ready, teacher, topk) for name, teacher in teachers.items()}
    for name, table in alignment.items():
        if undefined := np.isnan(table).sum() + np.isnan(latents[name]):
            warn_of_undefined(name, f" {undefined} of {table.size + 1} times")
    return Representation(
        times=times,
        alignment=alignment,
        latents=latents,
        probes=probes,
        probe_latents=probe(features.latents, features.labels) if classes else None,
        probe_teachers={
            name: probe(tokens, features.labels) for name, tokens in features.teachers.items()
        }
        if classes
        else {},
        spatial=features.spatial and features.spatial.averaged(),
    )


def probe(features: np.ndarray, labels: np.ndarray) -> float:
    """Test accuracy, 0 to 1, of a linear probe of features (N, D); see `measure_representation`."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-2, 4, 7)))
    # Sort by class first, so that both halves have half of each class.
    order = np.argsort(labels, kind="stable")
    seen, unseen = order[::2], order[1::2]
    classifier.fit(features[seen], labels[seen])
    return float(classifier.score(features[unseen], labels[unseen]))


def _check(models, source, times, count):
    if models.backbone is None:
        raise UserError("config.train has no 'backbone': the run has no backbone to look into")
    if not models.teachers:
        raise UserError("config.teachers is empty: the run has no teacher to compare with")
    check_images(source)
    if not 4 <= count <= len(source):
        raise UserError(f"{source.name} holds {len(source)} images, {count} are requested")
    wrong = [time for time in times if not 0 <= time <= 1]
    if wrong or not len(times):
        raise UserError(f"times are {list(times)}: give noise levels from 0 to 1")


def make_extract(
    config: ConfigDict, models: Models, mesh: Mesh | None = None, *, spatial: bool = False
) -> Extract:
    """Build the compiled `extract(weights, images, labels, seeds, times) -> dict`.

    `weights` are the sampling weights (see `sampling_weights`) and, under "teachers", the teachers'
    variables; images (B, H, W, 3) uint8, labels (B,), seeds (2,) of the noise, times (T,). The dict
    has "backbone" (T, depth, B, D), "latents" (B, h w c) and "teachers", name -> (B, D_k), float32.
    With `spatial` it has the fields of `SpatialStructure` per image, too.

    On a mesh, all processes make the same call with the complete batch, the devices share it, and
    every process receives all features.
    """
    path = PATHS[config.objective.interpolant]
    class_dim, grid = class_token_dim(models.backbone), models.backbone.grid

    def structure(tokens):
        return spatial_measures(tokens[:, : grid**2], grid, grid)

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def extract(weights, images, labels, seeds, times):
        if mesh is not None:
            images, labels = jax.lax.with_sharding_constraint(
                (images, labels), batch_sharding(mesh)
            )
        posterior = encode(models.tokenizer, weights["tokenizer"], to_float(images))
        norm = {"batch_stats": weights["latent_norm"]}
        latents = models.latent_norm.apply(norm, posterior.mean, train=False)
        key = jax.random.fold_in(jax.random.key(seeds[0]), seeds[1])
        noise = jax.random.normal(key, latents.shape, latents.dtype)
        noise = config.objective.noise_scale * noise
        tokens = teacher_tokens(models, weights["teachers"], images)
        of_class = jax.random.normal(jax.random.fold_in(key, 1), (len(images), class_dim))
        null = null_condition(models.backbone.conditioner, weights)
        if null is None:
            condition = condition_of(models, weights, {"label": labels})
        else:
            condition = repeated(null, len(images))

        def inputs_at(t):
            t = jnp.full(len(images), t)
            x, _ = interpolate(path, latents, noise, t)
            inputs = [x, t, condition]
            if class_dim:  # of the first teacher
                clean = next(iter(tokens.values()))[:, -1]
                inputs.append(interpolate(path, clean, of_class, t)[0])
            return inputs

        def hidden(t):
            return models.backbone.apply(weights["backbone"], *inputs_at(t), method="hidden")

        def aligned(t):
            return structure(models.backbone.apply(weights["backbone"], *inputs_at(t)).tokens)

        found = {
            "backbone": jax.lax.map(hidden, times),
            "latents": latents.reshape(len(images), -1),
            "teachers": {name: _pooled(array[:, : grid**2]) for name, array in tokens.items()},
        }
        if spatial:
            found["spatial"] = {
                "backbone": jax.lax.map(aligned, times),
                "latents": structure(patches(latents, grid)),
                "teachers": {name: structure(array) for name, array in tokens.items()},
            }
        return found

    def call(weights, *inputs):
        inputs = inputs if mesh is None else place(inputs, replicated(mesh))
        with jax.default_matmul_precision("highest"):
            return extract(weights, *inputs)

    return call


def pooled_tokens(teacher: Encoder, variables: Mapping, images: jax.Array) -> jax.Array:
    """A teacher's mean patch tokens (B, D) float32 of images uint8 (B, H, W, 3)."""
    return _pooled(patch_tokens(teacher, variables, images))


def _pooled(tokens):
    return tokens.astype(jnp.float32).mean(1)
