"""The judge of samples: a small convolutional classifier that is independent of all training.

It has its own weights and seed, and a convolutional architecture, while the teacher is a
transformer. So it judges a VAE tuned towards the teacher's features by other features.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.sources import open_source
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.interop.small_networks import load_network, read_accuracy, save_network
from repae_jax.models.convnet import ConvLevel
from repae_jax.training.classifier import accuracy, fit_classifier
from repae_jax.utils.images import to_float

_BATCH = 256


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
    """A trained judge.

    Attributes:
      network: the classifier.
      params: its parameters.
      accuracy: its accuracy on the held-out images, in [0, 1].
    """

    network: JudgeNetwork
    params: dict
    accuracy: float

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


def train_judge(
    study: ConfigDict, data: ConfigDict, path: pathlib.Path, *, progress: bool = True
) -> None:
    """Train the study's judge on the training split, and save it with its held-out accuracy.

    Args:
      study: the study; `judge` defines the network and its training.
      data: the data section for `open_source`.
      path: the file to write.
      progress: show a bar.
    """
    recipe = study.judge
    network = _network(study)
    train, heldout = (open_source(data, split) for split in ("train", "heldout"))
    # The runs have the seeds 0, 1, 2, ...; the judge's seed differs from all of them.
    params = fit_classifier(
        network, to_float, train, recipe, seed=1_000, name="judge", progress=progress
    )
    reached = accuracy(network, to_float, params, heldout, recipe.batch_size)
    save_network(path, params, {"accuracy": reached})


def load_judge(study: ConfigDict, path: pathlib.Path) -> Judge:
    """Load the judge that `train_judge` saved.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    network = _network(study)
    params = load_network(path, network, study.config.data.resolution)
    return Judge(network, params, read_accuracy(path))


def _network(study):
    return JudgeNetwork(tuple(study.judge.channels), study.config.data.num_classes)
