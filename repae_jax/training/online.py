"""Evaluation during training: Fréchet distance and CKNNA on few images, at intervals.

The measures show a run's progress. With few images they differ from the figures of papers, which
`evaluate` and `evaluate-alignment` measure.
"""

import dataclasses
import functools
import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.config.measured import INCEPTION, measuring_teacher
from repae_jax.data.source import check_images
from repae_jax.errors import UserError
from repae_jax.evaluation.alignment import alignments
from repae_jax.evaluation.fid_metrics import (
    IdenticalImages,
    Reference,
    as_reference,
    compare,
    measure,
    read_reference,
)
from repae_jax.evaluation.generated_images import generated_image_set
from repae_jax.evaluation.image_sets import from_source, has_images, open_images
from repae_jax.evaluation.inception_features import Features, make_features
from repae_jax.evaluation.reference import has_statistics, read_statistics
from repae_jax.evaluation.representation import (
    extract_features,
    make_extract,
    pooled_tokens,
    random_subset,
)
from repae_jax.interop.inception import read_inception
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.networks import Models
from repae_jax.parallel.mesh import batch_sharding, place, replicated
from repae_jax.runs.captions import inputs_in_turn
from repae_jax.runs.open_run import sampling_weights
from repae_jax.runs.run_data import RunData
from repae_jax.runs.state import TrainState
from repae_jax.sampling.generate import Generate
from repae_jax.utils.finite import NotFinite


class OnlineEvaluation:
    """Measures a run's averaged backbone; all processes of a job make the same calls.

    The constructor opens and checks the reference. Its features are computed once, because the
    feature network is frozen.
    """

    def __init__(
        self,
        config: ConfigDict,
        models: Models,
        mesh: Mesh,
        key: jax.Array,
        data: RunData,
        generate: Generate,
        *,
        batch_size: int,
    ):
        """Open the reference of `config.evaluation`.

        Args:
          config: the run's configuration.
          models: its networks.
          mesh: the devices.
          key: the key of the samples, on the mesh.
          data: the run's data, with held-out images if CKNNA is requested.
          generate: the sampler, on the mesh.
          batch_size: images per batch, a multiple of the number of devices.

        Raises:
          UserError: files, images or weights are missing or damaged.
        """
        self._config, self._models, self._mesh, self._key = config, models, mesh, key
        self._generate, self._batch_size = generate, batch_size
        wanted = self._wanted = config.evaluation
        self._inception = self._reference = self._training = None
        self._teacher = measuring_teacher(config)
        if wanted.samples and self._teacher is None:
            self._inception = make_features(read_inception(wanted.weights), mesh=mesh)
        elif wanted.samples:
            self._tokens = _make_tokens(models.teachers[self._teacher], mesh)
        if wanted.samples:
            self._inputs = inputs_in_turn(config, data.train, wanted.samples)
        if wanted.samples and wanted.reference:
            _check_reference(config, models)
        elif wanted.samples:
            check_images(data.train)
            self._training = data.train
        self._heldout = data.heldout
        if wanted.cknna_images:
            check_images(data.heldout)
            self._extract = make_extract(config, models, mesh)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Measure a state; returns {name: value}, without undefined values.

        The names are "fid", "sfid", "inception_score", "precision" and "recall" of
        `config.evaluation.samples` images, or "frechet_NAME", "precision_NAME" and "recall_NAME" if
        a teacher is the feature network; and for each teacher "cknna_NAME" of the tokens that are
        aligned with it.
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
            self._reference = self._measure_reference(features)
        config = self._config
        images = generated_image_set(
            "samples", self._generate, sampling_weights(state), self._key, self._inputs,
            config.data.resolution, self._mesh,
        )  # fmt: skip
        try:
            measured = measure(images, features, batch_size=self._batch_size)
        except (IdenticalImages, NotFinite):  # the run continues: its monitor warns
            return {}
        scores = dataclasses.asdict(compare(measured, self._reference))
        del scores["count"]
        scores = {name: value for name, value in scores.items() if value is not None}
        if self._inception is not None:
            return scores
        scores["frechet"] = scores.pop("fid")  # only Inception's is called FID
        return {f"{name}_{self._teacher}": value for name, value in scores.items()}

    def _measure_reference(self, features: Features) -> Reference:
        how = {"batch_size": self._batch_size}
        resolution = self._config.data.resolution
        if self._wanted.reference:
            return read_reference(self._wanted.reference, features, resolution=resolution, **how)
        count = min(self._wanted.samples, len(self._training))
        source = random_subset(self._training, count, self._config.seed)
        images = from_source(source, self._training.name, resolution)
        return as_reference(measure(images, features, **how))

    def _alignment(self, state):
        config, wanted = self._config, self._wanted
        time = wanted.cknna_time
        features = extract_features(
            config,
            self._models,
            state,
            self._heldout,
            (time,),
            count=min(wanted.cknna_images, len(self._heldout)),
            batch_size=self._batch_size,
            extract=self._extract,
        )
        tokens = features.backbone[time][self._models.backbone.encoder_depth - 1]
        found = alignments(tokens, features.teachers)
        return {f"cknna_{name}": value for name, value in found.items()}


def _check_reference(config, models):
    """Raise UserError for an invalid `config.evaluation.reference`."""
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
    """Build `tokens(variables, images)`, which returns a teacher's features for `measure`."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def pooled(variables, images):
        images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
        return {"pool": pooled_tokens(teacher, variables, images)}

    def tokens(variables, images):
        return pooled(variables, place(images, replicated(mesh)))

    return tokens
