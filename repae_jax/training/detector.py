"""Training of the detector of described images, and of the judge that it is part of."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repae_jax.data.described_objects import render_objects
from repae_jax.evaluation.described_judge import NETWORK, DescribedJudge, measure_accuracy
from repae_jax.models.detector import Detector, Grid, assign_cells
from repae_jax.training.classifier import shift_images
from repae_jax.training.fit import fit
from repae_jax.utils.images import to_float

_HELDOUT, _FIRST_HELDOUT = 512, 1 << 24  # renders on which a judge is measured
_BOX_WEIGHT = 5.0  # of the boxes' L1 loss; the other losses have the weight 1


@dataclasses.dataclass(frozen=True)
class DetectorRecipe:
    """How a detector is trained.

    Attributes:
      renders: different images, rendered once.
      steps: optimizer steps.
      batch_size: images in a batch.
      learning_rate: the highest rate of the schedule.
      weight_decay: AdamW's decoupled weight decay.
      shift: pixels by which images are shifted, at most, along each axis.
      noise: the largest standard deviation of the noise, of images in [-1, 1].
    """

    renders: int = 15_000
    steps: int = 1_200
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    shift: int = 4
    noise: float = 0.08


def train_judge(recipe: DetectorRecipe, seed: int = 0, *, progress: bool = True) -> DescribedJudge:
    """Train a judge of described images, and measure it on renders of its own stream.

    Raises:
      NotFinite: the training diverged.
    """
    renders = render_objects(recipe.renders, progress=progress)
    params = fit_detector(NETWORK, renders, recipe, seed, progress=progress)
    judge = DescribedJudge(params, math.nan)
    heldout = render_objects(_HELDOUT, first=_FIRST_HELDOUT, progress=False)
    return dataclasses.replace(judge, accuracy=measure_accuracy(judge, heldout))


def fit_detector(
    detector: Detector,
    renders: Mapping[str, np.ndarray],
    recipe: DetectorRecipe,
    seed: int,
    *,
    progress: bool = True,
) -> dict:
    """Train the detector on shifted, slightly blurred and noisy renders; returns the parameters.

    Args:
      detector: the network.
      renders: images and their objects as `render_objects` makes them.
      recipe: how to train.
      seed: seed of the initialization, the order of images, and their changes.
      progress: show a bar.

    Raises:
      NotFinite: the training diverged.
    """
    key = jax.random.key(seed)

    def loss(params, batch, key):
        images, boxes = augment(batch["image"], batch["box"], batch["valid"], recipe, key)
        grid = detector.apply({"params": params}, images)
        return detection_loss(grid, batch | {"box": boxes})

    return fit(
        jax.jit(detector.init)(key, to_float(renders["image"][:1]))["params"],
        loss,
        _batches(renders, recipe.batch_size, seed),
        key,
        recipe,
        name="judge",
        progress=progress,
    )


def _batches(arrays, size, seed):
    """Endless shuffled batches; an epoch leaves out what does not fill its last batch."""
    count = len(arrays["image"])
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for rows in order[: count - count % size].reshape(-1, size):
            yield {name: array[rows] for name, array in arrays.items()}


def detection_loss(grid: Grid, objects: dict[str, jax.Array]) -> jax.Array:
    """The mean loss per predicting cell: focal loss, cross-entropies, and L1 of the boxes.

    The focal loss of the presence is that of arXiv 1708.02002 with gamma 2.

    Args:
      grid: the predictions.
      objects: "box" (B, K, 4), "shape" and "color" (B, K) indices, "valid" (B, K).
    """
    positive, owner = assign_cells(objects["box"], objects["valid"], grid.presence.shape[1])

    def owned(name):  # (B, K, ...) -> (B, g, g, ...)
        return jax.vmap(lambda values, index: values[index])(objects[name], owner)

    entropy = optax.softmax_cross_entropy_with_integer_labels
    of_object = (
        entropy(grid.shape, owned("shape"))
        + entropy(grid.color, owned("color"))
        + _BOX_WEIGHT * jnp.abs(grid.box - owned("box")).mean(-1)
    )
    presence = optax.sigmoid_focal_loss(grid.presence, positive.astype(jnp.float32), gamma=2.0)
    total = presence.sum() + jnp.where(positive, of_object, 0).sum()
    return total / positive.sum()


def augment(
    images: jax.Array, boxes: jax.Array, valid: jax.Array, recipe: DetectorRecipe, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Shift, blur and disturb uint8 images (B, H, W, 3); objects stay inside the image.

    Returns:
      images (B, H, W, 3) in [-1, 1], nominally, and their boxes (B, K, 4).
    """
    keys = jax.random.split(key, 6)
    count, side = images.shape[:2]
    # The room of all objects to the left and above, to the right and below, in pixels.
    room = jnp.concatenate([1 + boxes[..., :2], 1 - boxes[..., 2:]], -1)
    room = jnp.where(valid[..., None], room, 2)
    room = jnp.floor(room.min(1).clip(0) * side / 2).clip(0, recipe.shift).astype(jnp.int32)
    shifts = jax.random.randint(keys[0], (count, 2), -room[:, :2], room[:, 2:] + 1)  # x, y
    # `shift_images` cuts a window at rows and columns that grow as the content moves back.
    moved = shift_images(images, -shifts[:, ::-1], recipe.shift)
    boxes = boxes + jnp.tile(shifts * 2 / side, 2)[:, None]

    x = to_float(moved)
    blur = jax.random.uniform(keys[1], (count, 1, 1, 1)) ** 2  # most images stay almost sharp
    x = x + blur * (_blurred(x) - x)
    scale = jax.random.uniform(keys[2], (count, 1, 1, 1), minval=0.95, maxval=1.05)
    offset = jax.random.uniform(keys[3], (count, 1, 1, 1), minval=-0.04, maxval=0.04)
    deviation = recipe.noise * jax.random.uniform(keys[4], (count, 1, 1, 1)) ** 2
    return x * scale + offset + deviation * jax.random.normal(keys[5], x.shape), boxes


def _blurred(x):
    """Average images (B, H, W, C) by the binomial kernel of 3 x 3 pixels; edges repeat."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
