"""The judges of samples: small convolutional networks that are independent of all training.

A judge has its own weights and seed, and a convolutional architecture, while the teacher is a
transformer. So it judges a VAE tuned towards the teacher's features by other features. Classes are
judged by a classifier; captions of described images by a detector, with GenEval's rules.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.described_prompts import is_unseen, make_prompts
from repae_jax.data.geneval_metadata import TAGS
from repae_jax.data.sources import open_source
from repae_jax.evaluation import described_judge
from repae_jax.evaluation.geneval import fits
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.interop.small_networks import load_network, read_accuracy, save_network
from repae_jax.models.convnet import ConvLevel
from repae_jax.runs.captions import Inputs, make_tokenize, tokenized
from repae_jax.sampling.class_labels import balanced_labels
from repae_jax.study.plan import judges_prompts
from repae_jax.training.classifier import accuracy, fit_classifier
from repae_jax.training.detector import DetectorRecipe
from repae_jax.training.detector import train_judge as train_detector
from repae_jax.utils.images import to_float

_BATCH = 256
# The runs have the seeds 0, 1, 2, ...; the judge's seed differs from all of them.
_SEED = 1_000


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the samples of a run have to show.

    Attributes:
      inputs: the sampler's inputs (N, ...).
      rows: (N,) the row of each sample in pictures, a class or a tag.
      names: the rows' names.
      prompts: GenEval's metadata of each sample; empty for classes.
    """

    inputs: Inputs
    rows: np.ndarray
    names: list[str]
    prompts: list[dict] = dataclasses.field(default_factory=list)


class JudgeNetwork(nn.Module):
    """A convolutional classifier: levels that halve the size, then the mean over positions.

    Attributes:
      channels: channels of each level; the last is the number of features.
      num_classes: number of classes.
    """

    channels: tuple[int, ...]
    num_classes: int

    def setup(self):
        self.levels = [ConvLevel(width, name=f"level_{i}") for i, width in enumerate(self.channels)]
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images (B, H, W, 3) in [-1, 1] to logits (B, classes)."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map images (B, H, W, 3) in [-1, 1] to features (B, channels[-1]) and logits."""
        x = images
        for level in self.levels:
            x = level(x)
        features = x.mean((1, 2))
        return features, self.head(features)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier, the judge of samples of classes.

    Attributes:
      network: the classifier.
      params: its parameters.
      accuracy: its accuracy on the held-out images, in [0, 1].
    """

    network: JudgeNetwork
    params: dict
    accuracy: float

    def ask(self, config: ConfigDict, count: int) -> Asked:
        """Ask for `count` samples, of all classes in turn."""
        labels = balanced_labels(count, config.data.num_classes)
        names = [str(number) for number in range(config.data.num_classes)]
        return Asked({"label": labels}, labels, names)

    def features(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Compute features (N, D) float32 of images in batches of at most 256 each."""
        return self.judge_batches(batches)[0]

    def compare(self, images: np.ndarray, asked: Asked) -> tuple[np.ndarray, dict[str, float]]:
        """The features (N, D) float32 of samples, and the figures of what they show."""
        features, predicted = self(images)
        return features, {"class_accuracy": float((predicted == asked.rows).mean())}

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute features (N, D) float32 and classes (N,) of images uint8 (N, H, W, 3)."""
        starts = range(0, len(images), _BATCH)
        return self.judge_batches(images[start : start + _BATCH] for start in starts)

    def judge_batches(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Compute features and predicted classes of images in batches of at most 256 each."""
        features, classes = [], []
        for batch in batches:
            result = jax.device_get(self._predict(self.params, pad_batch(batch, _BATCH)))
            features.append(result[0][: len(batch)])
            classes.append(result[1][: len(batch)])
        return np.concatenate(features), np.concatenate(classes)

    @functools.cached_property
    def _predict(self):
        @jax.jit
        def predict(params, images):
            inputs = {"params": params}, to_float(images)
            features, logits = self.network.apply(*inputs, method="features_and_logits")
            return features, logits.argmax(-1)

        return predict


@dataclasses.dataclass(frozen=True)
class PromptJudge:
    """A trained detector, the judge of samples of captions of described images.

    Attributes:
      detector: the detector, as `evaluate-described` uses it.
    """

    detector: described_judge.DescribedJudge

    def ask(self, config: ConfigDict, count: int) -> Asked:
        """Ask for at most `count` samples, as many of each of GenEval's tags."""
        prompts = make_prompts(count // len(TAGS))
        tokenize = make_tokenize(config)
        inputs = tokenized(tokenize, [prompt["prompt"] for prompt in prompts])
        rows = np.array([TAGS.index(prompt["tag"]) for prompt in prompts], np.int32)
        return Asked(inputs, rows, list(TAGS), prompts)

    def features(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Compute features (N, D) float32 of images in batches."""
        return np.concatenate([self.detector.features(images) for images in batches])

    def compare(self, images: np.ndarray, asked: Asked) -> tuple[np.ndarray, dict[str, float]]:
        """The features (N, D) float32 of samples, and the figures of what they show."""
        found = self.detector(images)
        fitting = np.array([fits(*pair)[0] for pair in zip(asked.prompts, found, strict=True)])
        figures = {tag: float(fitting[asked.rows == row].mean()) for row, tag in enumerate(TAGS)}
        figures["prompts"] = float(np.mean(list(figures.values())))
        unseen = np.array([is_unseen(prompt["prompt"]) for prompt in asked.prompts])
        if unseen.any():
            figures["unseen"] = float(fitting[unseen].mean())
        return self.detector.features(images), figures


def train_judge(
    study: ConfigDict, data: ConfigDict, path: pathlib.Path, *, progress: bool = True
) -> None:
    """Train the study's judge, and save it with its held-out accuracy.

    A classifier learns from the training split, a detector from renders of its own.

    Args:
      study: the study; `judge` defines the network and its training.
      data: the data section for `open_source`.
      path: the file to write.
      progress: show a bar.
    """
    if judges_prompts(study):
        recipe = DetectorRecipe(**study.judge.to_dict())
        described_judge.save_judge(path, train_detector(recipe, _SEED, progress=progress))
        return
    recipe = study.judge
    network = _network(study)
    train, heldout = (open_source(data, split) for split in ("train", "heldout"))
    params = fit_classifier(
        network, to_float, train, recipe, seed=_SEED, name="judge", progress=progress
    )
    reached = accuracy(network, to_float, params, heldout, recipe.batch_size)
    save_network(path, params, {"accuracy": reached})


def load_judge(study: ConfigDict, path: pathlib.Path) -> Judge | PromptJudge:
    """Load the judge that `train_judge` saved.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    if judges_prompts(study):
        return PromptJudge(described_judge.load_judge(path))
    network = _network(study)
    params = load_network(path, network, study.config.data.resolution)
    return Judge(network, params, read_accuracy(path))


def _network(study):
    return JudgeNetwork(tuple(study.judge.channels), study.config.data.num_classes)
