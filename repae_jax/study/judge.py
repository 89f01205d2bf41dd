"""The judge of samples: a small convolutional classifier that nothing is trained on or aligned to.

Weights and seed are its own, and it is no transformer as the teacher is, so that what is tuned
towards the teacher's features is not judged by them.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.sources import open_source
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.interop.files import read_metadata, read_tensors, write_safetensors
from repae_jax.interop.tables import flatten, load_flat
from repae_jax.models.convnet import ConvLevel
from repae_jax.training.classifier import accuracy, fit_classifier
from repae_jax.utils.images import to_float
from repae_jax.utils.schema import parse_json, real

_BATCH = 256


class JudgeNetwork(nn.Module):
    """Residual blocks, a level of half the size after each, and the mean over positions.

    channels: of the levels; the last is the number of features.
    """

    channels: tuple[int, ...]
    num_classes: int

    def setup(self):
        self.levels = [ConvLevel(width, name=f"level_{i}") for i, width in enumerate(self.channels)]
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> logits (B, classes)."""
        return self.look(images)[1]

    def look(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (B, H, W, 3) in [-1, 1] -> features (B, channels[-1]), logits (B, classes)."""
        x = images
        for level in self.levels:
            x = level(x)
        features = x.mean((1, 2))
        return features, self.head(features)


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained judge.

    accuracy: on the held-out images, in [0, 1].
    """

    network: JudgeNetwork
    params: dict
    accuracy: float

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) float32 and classes (N,) of images (N, H, W, 3) uint8."""
        return self.see(images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

    def see(self, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The same of batches of at most 256 images each."""
        features, classes = [], []
        for batch in batches:
            seen = jax.device_get(self._look(self.params, pad_batch(batch, _BATCH)))
            features.append(seen[0][: len(batch)])
            classes.append(seen[1][: len(batch)])
        return np.concatenate(features), np.concatenate(classes)

    @functools.cached_property
    def _look(self):
        @jax.jit
        def look(params, images):
            inputs = {"params": params}, to_float(images)
            features, logits = self.network.apply(*inputs, method="look")
            return features, logits.argmax(-1)

        return look


def train_judge(
    study: ConfigDict, data: ConfigDict, path: pathlib.Path, *, progress: bool = True
) -> None:
    """Train the study's judge on the training split, and save it with its held-out accuracy.

    Args:
      study: says which network, and how it is trained.
      data: what `open_source` takes.
      path: the file to write.
      progress: show a bar.
    """
    recipe = study.judge
    network = _network(study)
    train, heldout = (open_source(data, split) for split in ("train", "heldout"))
    # The runs' seeds are 0, 1, 2, ...; the judge has one of its own.
    params = fit_classifier(
        network, to_float, train, recipe, seed=1_000, name="judge", progress=progress
    )
    reached = accuracy(network, to_float, params, heldout, recipe.batch_size)
    notes = {"accuracy": json.dumps(reached)}
    write_safetensors(path, flatten(params), notes)


def load_judge(study: ConfigDict, path: pathlib.Path) -> Judge:
    """The judge that `train_judge` saved.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    network = _network(study)
    side = study.config.data.resolution
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    params = load_flat(read_tensors(path), shapes["params"], source=str(path))
    return Judge(network, params, noted_accuracy(path))


def noted_accuracy(path: pathlib.Path) -> float:
    """The accuracy that a network's file notes, in [0, 1].

    Raises:
      UserError: the file is missing or damaged, or does not note it.
    """
    notes = read_metadata(path)
    return parse_json(notes.get("accuracy", ""), real(0, 1), source=f"{path}: its accuracy")


def _network(study):
    return JudgeNetwork(tuple(study.judge.channels), study.config.data.num_classes)
