"""The judge of described images: which objects an image shows, by shape, color and box."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from repae_jax.data.described import RESOLUTION, VERSION, Box
from repae_jax.data.descriptions import COLORS, SHAPES
from repae_jax.errors import UserError
from repae_jax.evaluation.geneval import Detection
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.interop.files import read_metadata
from repae_jax.interop.small_networks import load_network, read_accuracy, save_network
from repae_jax.models.detector import Detector, Grid
from repae_jax.utils.images import to_float

NETWORK = Detector(channels=(32, 96), shapes=len(SHAPES), colors=len(COLORS))
_BATCH = 256
_PRESENT = 0.5  # the least probability of a detected object
_OVERLAP = 0.4  # two boxes whose intersection over union exceeds this are of one object
_JUDGES = "judges"  # the note that tells a judge's file from those of other networks


@dataclasses.dataclass(frozen=True)
class DescribedJudge:
    """A trained judge.

    Attributes:
      params: the parameters of `NETWORK`.
      accuracy: the share of held-out renders of which it names all objects, in [0, 1].
    """

    params: dict
    accuracy: float

    def __call__(self, images: np.ndarray) -> list[list[Detection]]:
        """Detect the objects of images uint8 (N, 32, 32, 3), the most confident first."""
        found = []
        for grid, count in self._batches(self._predict, images):
            rows = (jax.tree.map(lambda leaf, row=row: leaf[row], grid) for row in range(count))
            found += [objects_of(row) for row in rows]
        return found

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features (N, D) float32 of images uint8 (N, 32, 32, 3): the mean over all cells."""
        found = [features[:count] for features, count in self._batches(self._features, images)]
        return np.concatenate(found)

    def _batches(self, compute, images):
        """What `compute` makes of each batch, on the host, and the batch's number of images."""
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            yield jax.device_get(compute(self.params, pad_batch(batch, _BATCH))), len(batch)

    @functools.cached_property
    def _features(self):
        @jax.jit
        def features(params, images):
            cells = NETWORK.apply({"params": params}, to_float(images), method="features")
            return cells.mean((1, 2))

        return features

    @functools.cached_property
    def _predict(self):
        @jax.jit
        def predict(params, images):
            return NETWORK.apply({"params": params}, to_float(images))

        return predict


def objects_of(grid: Grid) -> list[Detection]:
    """The objects of an image, the most confident first.

    Cells whose boxes overlap are of one object: the most confident gives the box, and all vote on
    shape and color by their probabilities.

    Args:
      grid: the predictions of one image's cells, without a leading dimension, as numpy arrays.
    """
    presence = 1 / (1 + np.exp(-grid.presence.ravel().astype(np.float64)))
    boxes = grid.box.reshape(-1, 4)
    groups: list[list[int]] = []
    for cell in np.argsort(-presence, kind="stable"):
        if presence[cell] < _PRESENT:
            break
        same = (group for group in groups if _overlap(boxes[group[0]], boxes[cell]) > _OVERLAP)
        group = next(same, None)
        if group is None:
            groups.append([cell])
        else:
            group.append(cell)

    def voted(logits, group):
        logits = logits.reshape(len(presence), -1)[group]
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return (presence[group] @ (odds / odds.sum(-1, keepdims=True))).argmax()

    return [
        Detection(
            SHAPES[voted(grid.shape, group)],
            Box(*map(float, boxes[group[0]])),
            COLORS[voted(grid.color, group)],
            float(presence[group[0]]),
        )
        for group in groups
    ]


def measure_accuracy(judge: DescribedJudge, renders: dict[str, np.ndarray]) -> float:
    """The share of images of which the judge names all objects, in [0, 1].

    Args:
      judge: the judge.
      renders: images and their objects as `render_objects` makes them.
    """
    objects = zip(*(renders[name] for name in ("shape", "color", "valid")), strict=True)
    expected = [
        sorted((SHAPES[s], COLORS[c]) for s, c, there in zip(*of_image, strict=True) if there)
        for of_image in objects
    ]
    found = [sorted((it.kind, it.color) for it in seen) for seen in judge(renders["image"])]
    return float(np.mean([one == other for one, other in zip(found, expected, strict=True)]))


def save_judge(path: pathlib.Path, judge: DescribedJudge) -> None:
    """Write a judge as .safetensors.

    Raises:
      UserError: the file cannot be written.
    """
    notes = {_JUDGES: _kind(), "accuracy": judge.accuracy}
    save_network(path, judge.params, notes)


def load_judge(path: pathlib.Path) -> DescribedJudge:
    """Load a judge that `save_judge` wrote.

    Raises:
      UserError: the file is missing or damaged, holds another network, or a judge of another
        version of the images.
    """
    found = read_metadata(path).get(_JUDGES, "").strip('"')
    if found != _kind():
        what = f"a judge of {found}" if found else "no judge"
        raise UserError(
            f"{path} holds {what}, not one of {_kind()}: name another file, which will be written "
            "if it does not exist"
        )
    return DescribedJudge(load_network(path, NETWORK, RESOLUTION), read_accuracy(path))


def _kind():
    return f"described images, version {VERSION}"


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """The intersection over union of two boxes."""
    width, height = (
        max(0.0, min(first[2 + axis], second[2 + axis]) - max(first[axis], second[axis]))
        for axis in (0, 1)
    )
    areas = sum(max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1]) for b in (first, second))
    shared = width * height
    return shared / (areas - shared) if areas > shared else 0.0
