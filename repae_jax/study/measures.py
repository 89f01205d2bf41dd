"""The measures of one run of a study at one step."""

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.modules import build_sampler
from repae_jax.data.pipeline import eval_batches
from repae_jax.data.sources import open_source
from repae_jax.evaluation.alignment import alignments
from repae_jax.evaluation.frechet import Moments, frechet_distance
from repae_jax.evaluation.latents import (
    latent_statistics,
    power_spectrum,
    spatial_variance,
    total_variation,
    variance_in_common,
    variance_within,
)
from repae_jax.evaluation.precision_recall import precision_recall
from repae_jax.evaluation.reconstruction import mean_psnr
from repae_jax.evaluation.representation import extract_features, make_extract, random_subset
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.codec import make_codec
from repae_jax.runs.open_run import sampling_key, sampling_weights
from repae_jax.runs.state import TrainState, averaged_tokenizer
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.study.judge import Asked, Judge, PromptJudge
from repae_jax.utils.finite import NotFinite

_BATCH = 100
SHOWN = 10  # images in pictures
FINE = 0.25  # cycles per position; the detail of latents is called fine from here up


@dataclasses.dataclass(frozen=True, eq=False)
class StepMeasures:
    """The measures of one step of a run, and its images.

    Attributes:
      figures: name in `plan.MEASURES` -> value; undefined ones are left out.
      samples: generated images uint8 (N, H, W, 3); None without a backbone.
      asked: what they have to show; None without a backbone.
      heldout, latents: the first held-out images uint8 (M, H, W, 3) and their latents (M, h, w, c).
    """

    figures: dict[str, float]
    samples: np.ndarray | None
    asked: Asked | None
    heldout: np.ndarray
    latents: np.ndarray


class Measures:
    """Measures the states of one run."""

    def __init__(
        self, study: ConfigDict, judge: Judge | PromptJudge, config: ConfigDict, models: Models
    ):
        """Open the images, and compute the judge's features of the reference.

        Args:
          study: the study; `measures` defines the numbers of images.
          judge: the judge, whose features compare samples with the reference.
          config: the run's configuration.
          models: its networks, and the teacher even if the run trains without one.
        """
        self._wanted, self._judge = study.measures, judge
        self._config, self._models = config, models
        self._source = open_source(config.data, "heldout")
        self._count = min(self._wanted.heldout, len(self._source))
        self._heldout = _images(random_subset(self._source, self._count, 0))
        self._encode, self._decode = make_codec(models.tokenizer)
        if models.backbone is not None:
            self._generate = make_generate(models, build_sampler(config))
            self._extract = make_extract(config, models)
            train = open_source(config.data, "train")
            reference = random_subset(train, min(self._wanted.reference, len(train)), 0)
            batches = (batch["image"] for batch in eval_batches(reference, 256))
            self._reference = judge.features(batches)
            self._asked = judge.ask(config, self._wanted.samples)

    def __call__(self, state: TrainState) -> StepMeasures:
        """Measure a state; its `frozen` holds the teacher's variables.

        Raises:
          NotFinite: latents, reconstructions or samples are NaN or infinite.
        """
        figures, samples, asked = {}, None, None
        latents = self._measure_reconstruction(state, figures)
        if self._models.backbone is not None:
            samples, asked = self._measure_samples(state, figures), self._asked
            self._measure_alignment(state, figures)
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        return StepMeasures(finite, samples, asked, self._heldout[:SHOWN], latents[:SHOWN])

    def _measure_reconstruction(self, state, figures):
        variables = averaged_tokenizer(state)
        parts = np.array_split(self._heldout, -(-len(self._heldout) // _BATCH))
        latents = [np.asarray(self._encode(variables, part)) for part in parts]
        decoded = [jax.device_get(self._decode(variables, part)) for part in latents]
        images, finite = map(np.concatenate, zip(*decoded, strict=True))
        latents = np.concatenate(latents)
        if not (finite.all() and np.isfinite(latents).all()):
            raise NotFinite("the VAE makes latents or pixels that are NaN or infinite")
        figures["psnr"] = mean_psnr(self._heldout, images)
        figures["latent_variance"] = latent_statistics(latents).variance
        figures["spatial_variance"] = spatial_variance(latents)
        figures["total_variation"] = total_variation(latents)
        figures["latent_within"] = variance_within(latents)
        figures["latent_common"] = variance_in_common(latents)
        frequencies, power = power_spectrum(latents)
        power = power * frequencies  # the number of frequencies in a ring grows with its radius
        if power.sum() > 0:
            figures["latent_detail"] = float(power[frequencies >= FINE].sum() / power.sum())
        return latents

    def _measure_samples(self, state, figures):
        images = generate_all(
            self._generate,
            sampling_weights(state),
            sampling_key(self._config),
            self._asked.inputs,
            batch_size=_BATCH,
            progress=False,
        )
        features, found = self._judge.compare(images, self._asked)
        figures |= found
        moments = [Moments(features.shape[1]) for _ in range(2)]
        for each, rows in zip(moments, (features, self._reference), strict=True):
            each.update(rows)
        figures["frechet"] = frechet_distance(*moments)
        balls = precision_recall(self._reference, features)
        figures["precision"], figures["recall"] = balls.precision, balls.recall
        return images

    def _measure_alignment(self, state, figures):
        time = self._wanted.cknna_time
        features = extract_features(
            self._config, self._models, state, self._source, (time,),
            count=self._count, extract=self._extract,
        )  # fmt: skip
        tokens = features.backbone[time][self._models.backbone.encoder_depth - 1]
        for value in alignments(tokens, features.teachers).values():  # the study's only teacher
            figures["cknna"] = value


def _images(source):
    return np.concatenate([batch["image"] for batch in eval_batches(source, 256)])
