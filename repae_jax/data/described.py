"""Rendered images with captions: colored objects, and how they lie to each other.

Each image is a pure function of (seed, index), as are its scene and its caption. Colors are plain,
so that their names can be told; light, shadow, a cloudy background and noise vary freely. Objects
lie near the places of a 3 x 3 grid, so that a small backbone learns the shapes in minutes.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from repae_jax.data.canvas import clouds, composite, fill_polygons, grid
from repae_jax.data.descriptions import SIZES, Scene, caption_of, draw_scene, leave_out
from repae_jax.data.identity import Fingerprint
from repae_jax.data.outlines import outlines

RESOLUTION = 32
COUNTS = {"train": 1 << 20, "heldout": 1 << 14}
VERSION = 3  # changes whenever the same index gives another picture or caption

_SEEDS = {"train": 0, "heldout": 1}
_TURN = 8.0  # degrees that an object is turned, at most, to either side
_GAP = 1.05  # centers lie further apart than the radii's sum, by this factor
_ROWS = (-0.5, 0.0, 0.5)  # of the 3 x 3 places of a center, and their columns
_JITTER = 1 / 16  # a center lies this far from its place, at most, in x and in y
# color -> (hue in degrees, saturation, value), each from, to; no two boxes overlap.
HSV_BOXES = {
    "red": ((-8, 6), (0.78, 1.0), (0.62, 0.92)),
    "orange": ((22, 32), (0.82, 1.0), (0.86, 1.0)),
    "yellow": ((51, 61), (0.72, 1.0), (0.86, 1.0)),
    "green": ((105, 140), (0.6, 1.0), (0.42, 0.75)),
    "blue": ((208, 236), (0.68, 1.0), (0.55, 0.92)),
    "purple": ((270, 290), (0.5, 0.9), (0.45, 0.75)),
    "pink": ((322, 342), (0.34, 0.55), (0.9, 1.0)),
    "brown": ((18, 30), (0.55, 0.8), (0.32, 0.48)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.1)),
    "white": ((0, 360), (0.0, 0.06), (0.93, 1.0)),
}


class Box(NamedTuple):
    """The place of an object; x to the right, y downwards, the image from -1 to 1."""

    left: float
    top: float
    right: float
    bottom: float


class Rendered(NamedTuple):
    """An image, what it shows, and its caption."""

    image: np.ndarray  # uint8 (resolution, resolution, 3)
    scene: Scene
    boxes: tuple[Box, ...]  # of the objects, a thing's own in a row
    masks: np.ndarray  # (objects, resolution, resolution), coverage in [0, 1]
    caption: str


@dataclasses.dataclass(frozen=True)
class Described:
    """A split of the described images as a `Source`, of one class, with captions."""

    split: str
    count: int
    resolution: int = RESOLUTION
    num_classes: int = 1
    name: str = "described"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.image_name(index)}: there are {self.count}")
        made = describe(_SEEDS[self.split], index, self.resolution)
        return {"image": made.image, "label": np.int32(0), "caption": made.caption}

    def caption(self, index: int) -> str:
        return _scene_and_caption(_SEEDS[self.split], index)[2]

    def image_name(self, index: int) -> str:
        return f"{self.name}, {self.split}, image {index}"

    def fingerprint(self) -> Fingerprint:
        return {"source": "described", "count": self.count, "version": VERSION}


def describe(seed: int, index: int, resolution: int = RESOLUTION) -> Rendered:
    """Image `index` of the stream `seed`, with a caption that names a part of what it shows."""
    rng, scene, caption = _scene_and_caption(seed, index)
    image, boxes, masks = render(rng, scene, resolution)
    return Rendered(image, scene, boxes, masks, caption)


def _scene_and_caption(seed, index):
    """The random generator after the draws of a scene and its caption, and these two."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    scene = draw_scene(rng)
    return rng, scene, caption_of(leave_out(rng, scene), photo=bool(rng.random() < 0.5))


def render(rng: np.random.Generator, scene: Scene, resolution: int = RESOLUTION):
    """Render a scene, every attribute of which is set: image, boxes and masks of `Rendered`."""
    # What does not depend on the resolution is drawn first.
    objects = [
        (_outlines(rng, thing.shape, center, radius), color_of(rng, thing.color))
        for thing, center, radius in _places(rng, scene)
    ]
    light, background = rng.uniform(0, 2 * np.pi), color_of(rng, scene.background)
    canvas = background * _shade(rng, resolution)
    boxes, masks = [], []
    for parts, color in objects:
        mask = fill_polygons(parts, resolution)
        texture = color * rng.uniform(0.97, 1.03, (resolution, resolution, 1))
        composite(canvas, mask, texture, light, rng, steepness=0.4)
        (left, top), (right, bottom) = parts[0].min(0), parts[0].max(0)
        boxes.append(Box(float(left), float(top), float(right), float(bottom)))
        masks.append(mask)
    canvas += rng.normal(0, rng.uniform(0.002, 0.006), canvas.shape)
    image = np.rint(255 * canvas.clip(0, 1)).astype(np.uint8)
    return image, tuple(boxes), np.stack(masks)


def color_of(rng: np.random.Generator, name: str) -> np.ndarray:
    """A random RGB color (3,) in [0, 1] that bears this name."""
    import colorsys

    hue, saturation, value = (rng.uniform(*bounds) for bounds in HSV_BOXES[name])
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))


def name_of_color(rgb: np.ndarray) -> str:
    """The name of the nearest color's box to an RGB color (3,) in [0, 1].

    The distance is that of the cone of hue and chroma, and of the value.
    """
    import colorsys

    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))

    def distance(name):
        (first, last), of_saturation, of_value = HSV_BOXES[name]
        off = (hue * 360 - first) % 360  # beyond the first, on the circle
        away = max(0.0, min(off - (last - first), 360 - off)) if off > last - first else 0.0
        turned = np.deg2rad(min(away, 90.0)) * saturation * value * 2
        outside = (
            _outside(saturation * max(value, 0.2), of_saturation, max(value, 0.2)),
            _outside(value, of_value),
        )
        return turned**2 + sum(amount**2 for amount in outside)

    return min(HSV_BOXES, key=distance)


def _outside(amount, bounds, scale=1.0):
    low, high = bounds
    return max(low * scale - amount, amount - high * scale, 0.0)


def _shade(rng, resolution):
    """Soft clouds under a gradient of light, around 1: (H, W, 1)."""
    amount = clouds(rng, resolution, rng.uniform(1.4, 2.2))[..., None]
    y, x = grid(resolution)
    angle = rng.uniform(0, 2 * np.pi)
    slope = 1 + rng.uniform(0, 0.04) * (np.cos(angle) * x + np.sin(angle) * y)
    return (0.98 + 0.04 * amount) * slope[..., None]


def _outlines(rng, shape, center, radius):
    turn = np.deg2rad(rng.uniform(-_TURN, _TURN))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * radius
    return [part @ matrix.T + center for part in outlines(shape)]


def _places(rng, scene):
    """Yield (thing, center (2,), radius) of every object, clear of each other and of the edge."""
    objects = [thing for thing in scene.things for _ in range(thing.count)]
    while True:
        radii = [rng.uniform(*SIZES[thing.size]) for thing in objects]
        centers = rng.choice(_ROWS, (len(objects), 2))
        centers = centers + rng.uniform(-_JITTER, _JITTER, centers.shape)
        inside = all((np.abs(c) + r <= 1).all() for c, r in zip(centers, radii, strict=True))
        if inside and _clear(centers, radii) and _holds(scene.relation, centers):
            return list(zip(objects, centers, radii, strict=True))


def _holds(relation, centers):
    """Whether the first center lies so to the second, or there is no relation.

    The offset across is at most 0.4 of the offset along, so that this relation alone holds.
    """
    if not relation:
        return True
    x, y = centers[0] - centers[1]
    along, across = (x, y) if relation in ("left of", "right of") else (y, x)
    if relation in ("left of", "above"):
        along = -along
    return along > 0 and abs(across) <= 0.4 * along


def _clear(centers, radii):
    pairs = [(i, j) for i in range(len(radii)) for j in range(i)]
    return all(
        np.hypot(*(centers[i] - centers[j])) > _GAP * (radii[i] + radii[j]) for i, j in pairs
    )
