"""The figures of one run at one step."""

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.pipeline import eval_batches
from repae_jax.data.sources import open_source
from repae_jax.evaluation.alignment import alignments
from repae_jax.evaluation.frechet import Moments, frechet_distance
from repae_jax.evaluation.latents import (
    latent_statistics,
    power_spectrum,
    variance_in_common,
    variance_within,
)
from repae_jax.evaluation.precision_recall import precision_recall
from repae_jax.evaluation.reconstruction import mean_psnr
from repae_jax.evaluation.representation import extract_features, make_extract, random_subset
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.codec import make_codec
from repae_jax.runs.open_run import make_sampler, sampling_key, sampling_weights
from repae_jax.runs.state import TrainState, tokenizer_variables
from repae_jax.sampling.class_labels import balanced_labels
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.study.judge import Judge
from repae_jax.utils.finite import NotFinite

_BATCH = 100
SHOWN = 10  # images in pictures
FINE = 0.25  # cycles per position, from where on a latent's detail is fine


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What one step of a run shows.

    Attributes:
      figures: by name of `plan.MEASURES`; what is not defined is left out.
      samples: (N, H, W, 3) uint8, `labels` (N,) their classes; None without a backbone.
      heldout: the first held-out images (M, H, W, 3), and their `latents` (M, h, w, c).
    """

    figures: dict[str, float]
    samples: np.ndarray | None
    labels: np.ndarray | None
    heldout: np.ndarray
    latents: np.ndarray


class Measures:
    """Measures one run's states, step after step."""

    def __init__(self, study: ConfigDict, judge: Judge, config: ConfigDict, models: Models):
        """Open the images, and see those that samples are compared with.

        Args:
          study: what is measured.
          judge: whose features samples are compared in.
          config: the run's.
          models: its networks, with the teacher even where the run itself has none.
        """
        self._wanted, self._judge = study.measures, judge
        self._config, self._models = config, models
        self._source = open_source(config.data, "heldout")
        self._count = min(self._wanted.heldout, len(self._source))
        self._heldout = _images(random_subset(self._source, self._count, 0))
        self._encode, self._decode = make_codec(models.tokenizer)
        if models.backbone is not None:
            self._generate = make_generate(models.backbone, models.tokenizer, make_sampler(config))
            self._extract = make_extract(config, models)
            train = open_source(config.data, "train")
            reference = random_subset(train, min(self._wanted.reference, len(train)), 0)
            batches = (batch["image"] for batch in eval_batches(reference, 256))
            self._reference = judge.see(batches)[0]

    def __call__(self, state: TrainState) -> Seen:
        """The figures of a state; its `frozen` holds the teacher's variables.

        Raises:
          NotFinite: latents, reconstructions or samples are NaN or infinite.
        """
        figures, samples, labels = {}, None, None
        latents = self._reconstructed(state, figures)
        if self._models.backbone is not None:
            samples, labels = self._sampled(state, figures)
            self._aligned(state, figures)
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        return Seen(finite, samples, labels, self._heldout[:SHOWN], latents[:SHOWN])

    def _reconstructed(self, state, figures):
        variables = tokenizer_variables(state.params, state.frozen)
        parts = np.array_split(self._heldout, -(-len(self._heldout) // _BATCH))
        latents = [np.asarray(self._encode(variables, part)) for part in parts]
        decoded = [jax.device_get(self._decode(variables, part)) for part in latents]
        images, finite = map(np.concatenate, zip(*decoded, strict=True))
        latents = np.concatenate(latents)
        if not (finite.all() and np.isfinite(latents).all()):
            raise NotFinite("the VAE makes latents or pixels that are NaN or infinite")
        figures["psnr"] = mean_psnr(self._heldout, images)
        figures["latent_variance"] = latent_statistics(latents).variance
        figures["latent_within"] = variance_within(latents)
        figures["latent_common"] = variance_in_common(latents)
        frequencies, power = power_spectrum(latents)
        power = power * frequencies  # a ring holds as many as its radius; none at 0
        if power.sum() > 0:
            figures["latent_detail"] = float(power[frequencies >= FINE].sum() / power.sum())
        return latents

    def _sampled(self, state, figures):
        labels = balanced_labels(self._wanted.samples, self._config.data.num_classes)
        images = generate_all(
            self._generate,
            sampling_weights(state),
            sampling_key(self._config),
            labels,
            batch_size=_BATCH,
            progress=False,
        )
        features, seen = self._judge(images)
        moments = [Moments(features.shape[1]) for _ in range(2)]
        for each, rows in zip(moments, (features, self._reference), strict=True):
            each.update(rows)
        figures["frechet"] = frechet_distance(*moments)
        balls = precision_recall(self._reference, features)
        figures["precision"], figures["recall"] = balls.precision, balls.recall
        figures["class_accuracy"] = float((seen == labels).mean())
        return images, labels

    def _aligned(self, state, figures):
        time = self._wanted.cknna_time
        seen = extract_features(
            self._config, self._models, state, self._source, (time,),
            count=self._count, extract=self._extract,
        )  # fmt: skip
        tokens = seen.backbone[time][self._models.backbone.encoder_depth - 1]
        for value in alignments(tokens, seen.teachers).values():  # of the study's one teacher
            figures["cknna"] = value


def _images(source):
    return np.concatenate([batch["image"] for batch in eval_batches(source, 256)])
