"""Rendered images with the boxes, shapes and colors of their objects, to train a detector."""

import numpy as np

from repae_jax.data.described import RESOLUTION, render
from repae_jax.data.descriptions import COLORS, RELATIONS, SHAPES, SIZES, Scene, Thing

MOST = 4  # objects in an image; captions name three at most
_STREAM = 2  # the streams 0 and 1 are the splits of `described.Described`


def render_objects(
    count: int, *, first: int = 0, resolution: int = RESOLUTION, progress: bool = True
) -> dict[str, np.ndarray]:
    """Render images of any combination of shapes and colors, those held out included.

    Args:
      count: number of images.
      first: number of the first image in the stream; each image depends on its own number alone.
      resolution: pixels along a side.
      progress: show a bar.

    Returns:
      "image" uint8 (count, H, H, 3), and of each image's objects "box" (count, MOST, 4), "shape"
      and "color" (count, MOST) as indices, and "valid" (count, MOST).
    """
    from tqdm import tqdm

    indices = tqdm(range(first, first + count), desc="renders", disable=not progress)
    elements = [_render_one(index, resolution) for index in indices]
    return {key: np.stack([element[key] for element in elements]) for key in elements[0]}


def _render_one(index, resolution):
    rng = np.random.Generator(np.random.Philox(key=[_STREAM, index]))
    scene = draw_objects(rng)
    image, boxes, _ = render(rng, scene, resolution)
    things = [thing for thing in scene.things for _ in range(thing.count)]
    shapes = [SHAPES.index(thing.shape) for thing in things]
    colors = [COLORS.index(thing.color) for thing in things]
    free = MOST - len(things)
    return {
        "image": image,
        "box": np.pad(np.array(boxes, np.float32), ((0, free), (0, 0))),
        "shape": np.pad(np.array(shapes, np.int32), (0, free)),
        "color": np.pad(np.array(colors, np.int32), (0, free)),
        "valid": np.arange(MOST) < len(things),
    }


def draw_objects(rng: np.random.Generator) -> Scene:
    """A scene of one to four objects of one kind or of several; the background's color differs."""
    number = int(rng.choice(MOST, p=(0.25, 0.4, 0.25, 0.1))) + 1
    background = _pick(rng, COLORS)
    colors = [color for color in COLORS if color != background]
    sizes = ("small",) if number > 2 else tuple(SIZES)
    if number > 1 and rng.random() < 0.4:
        return Scene(
            (Thing(_pick(rng, SHAPES), _pick(rng, colors), "small", number),), "", background
        )
    things = tuple(
        Thing(_pick(rng, SHAPES), _pick(rng, colors), _pick(rng, sizes)) for _ in range(number)
    )
    relation = _pick(rng, RELATIONS) if number == 2 and rng.random() < 0.5 else ""
    return Scene(things, relation, background)


def _pick(rng, values):
    return values[rng.integers(len(values))]
