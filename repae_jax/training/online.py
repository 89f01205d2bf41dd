"""Measures of a run while it trains: Fréchet distance and CKNNA of few images, again and again.

They follow a run's course. Of so few images they are not the figures of papers: `evaluate` and
`evaluate-alignment` measure those.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.config.measured import INCEPTION, measuring_teacher
from repae_jax.data.source import Source, check_images
from repae_jax.errors import UserError
from repae_jax.evaluation.alignment import alignments
from repae_jax.evaluation.fid_metrics import (
    AllAlike,
    Reference,
    as_reference,
    compare,
    measure,
    read_reference,
)
from repae_jax.evaluation.generated_images import sampled
from repae_jax.evaluation.image_sets import from_source, has_images, open_images
from repae_jax.evaluation.inception_features import Features, make_features
from repae_jax.evaluation.reference import has_statistics, read_statistics
from repae_jax.evaluation.representation import (
    drawn,
    extract_features,
    make_extract,
    pooled_tokens,
)
from repae_jax.interop.inception import read_inception
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.networks import Models
from repae_jax.parallel.mesh import over_batch, put, replicated
from repae_jax.runs.open_run import Run, sampling_weights
from repae_jax.runs.run_data import RunData
from repae_jax.runs.state import TrainState
from repae_jax.sampling.class_labels import balanced
from repae_jax.sampling.generate import Generate
from repae_jax.training.program import Program
from repae_jax.utils.finite import NotFinite


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What a run is compared with, opened and checked before it begins.

    Attributes:
      inception: InceptionV3's variables, None where a teacher is in its place.
      training: images that samples are compared with, None where a reference is named.
      heldout: images of CKNNA, None without it.
    """

    inception: Mapping[str, Any] | None
    training: Source | None
    heldout: Source | None


def open_comparison(config: ConfigDict, models: Models, data: RunData) -> Comparison | None:
    """What the configuration wants to compare a run with; None if nothing.

    Raises:
      UserError: files, images or weights are missing or damaged.
    """
    wanted = config.evaluation
    if not wanted.every:
        return None
    inception = training = None
    if wanted.samples and measuring_teacher(config) is None:
        inception = read_inception(wanted.weights)
    if wanted.samples and wanted.reference:
        _check_reference(config, models)
    elif wanted.samples:
        training = data.train
    for source in (training, data.heldout):
        if source is not None:
            check_images(source)
    return Comparison(inception, training, data.heldout)


class OnlineEvaluation:
    """Measures a run's averaged backbone; all processes of a job make the same calls.

    What is compared with is seen once: the networks of a reference are frozen.
    """

    def __init__(
        self,
        program: Program,
        workdir: pathlib.Path,
        generate: Generate,
        batch_size: int,
        comparison: Comparison,
    ):
        """Prepare to measure.

        Args:
          program: the run's.
          workdir: where it lives.
          generate: its sampler, on its mesh.
          batch_size: images at a time, a multiple of the devices.
          comparison: see `open_comparison`.
        """
        self._program, self._workdir = program, workdir
        self._generate, self._batch_size = generate, batch_size
        config = self._config = program.config
        wanted = self._wanted = config.evaluation
        self._inception = self._reference = None
        self._teacher = measuring_teacher(config)
        if comparison.inception is not None:
            self._inception = make_features(comparison.inception, mesh=program.mesh)
        elif wanted.samples:
            self._tokens = _make_tokens(program.models.teachers[self._teacher], program.mesh)
        self._training, self._heldout = comparison.training, comparison.heldout
        if wanted.cknna_images:
            self._extract = make_extract(config, program.models, program.mesh)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The figures of a state, by name; those that are not defined are left out.

        "fid", "sfid", "inception_score", "precision" and "recall" of `samples` images, or with a
        teacher for a network "frechet_NAME", "precision_NAME" and "recall_NAME"; and for each
        teacher "cknna_NAME" of the tokens that are aligned with it.
        """
        figures = {}
        if self._wanted.samples:
            figures |= self._distances(state)
        if self._wanted.cknna_images:
            figures |= self._alignment(state)
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _distances(self, state):
        features = self._inception
        if features is None:
            features = functools.partial(self._tokens, state.frozen["teachers"][self._teacher])
        if self._reference is None:
            self._reference = self._seen_reference(features)
        config, mesh = self._config, self._program.mesh
        labels = balanced(self._wanted.samples, config.data.num_classes)
        images = sampled(
            "samples", self._generate, sampling_weights(state), self._program.key(), labels,
            config.data.resolution, mesh,
        )  # fmt: skip
        try:
            measured = measure(images, features, batch_size=self._batch_size)
        except (AllAlike, NotFinite):  # not worth ending a run for: its alarms say it
            return {}
        scores = dataclasses.asdict(compare(measured, self._reference))
        del scores["count"]
        scores = {name: value for name, value in scores.items() if value is not None}
        if self._inception is not None:
            return scores
        scores["frechet"] = scores.pop("fid")  # FID is that of Inception
        return {f"{name}_{self._teacher}": value for name, value in scores.items()}

    def _seen_reference(self, features: Features) -> Reference:
        how = {"batch_size": self._batch_size}
        resolution = self._config.data.resolution
        if self._wanted.reference:
            return read_reference(self._wanted.reference, features, resolution=resolution, **how)
        count = min(self._wanted.samples, len(self._training))
        source = drawn(self._training, count, self._config.seed)
        images = from_source(source, self._training.name, resolution)
        return as_reference(measure(images, features, **how))

    def _alignment(self, state):
        config, wanted = self._config, self._wanted
        run = Run(self._workdir, config, self._program.models, state)
        time = wanted.cknna_time
        features = extract_features(
            run,
            self._heldout,
            (time,),
            count=min(wanted.cknna_images, len(self._heldout)),
            batch_size=self._batch_size,
            extract=self._extract,
        )
        tokens = features.backbone[time][self._program.models.backbone.encoder_depth - 1]
        found = alignments(tokens, features.teachers)
        return {f"cknna_{name}": value for name, value in found.items()}


def _check_reference(config, models):
    """Raise UserError for what cannot be compared with."""
    path, teacher = config.evaluation.reference, measuring_teacher(config)
    if has_images(path) or not has_statistics(path):
        open_images(path, config.data.resolution)
    if not has_statistics(path):
        return
    width = len(read_statistics(path).mean)
    expected = 2048 if teacher is None else models.teachers[teacher].dim
    if width != expected:
        raise UserError(
            f"config.evaluation.reference {path} holds features of {width} dimensions: those of "
            f"{teacher or INCEPTION} have {expected}; name images, or leave it empty"
        )


def _make_tokens(teacher: Encoder, mesh: Mesh):
    """Build `tokens(variables, images)`, a teacher's features as `measure` takes them."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def pooled(variables, images):
        images = jax.lax.with_sharding_constraint(images, over_batch(mesh))
        return {"pool": pooled_tokens(teacher, variables, images)}

    def tokens(variables, images):
        return pooled(variables, put(images, replicated(mesh)))

    return tokens
