"""Rendered scenes: any number of small color images, each a pure function of (seed, index).

Each image shows an object with one of 24 shapes; the shape is the class. Everything else is
nuisance: pose, colors, the object's texture, light and shadow, a cloudy background, clutter behind
and before the object. Scenes need no download, and compress like photographs, because an image has
noise, gradients and edges.
"""

import dataclasses

import numpy as np

from repae_jax.data.canvas import clouds, composite, fill_polygons, grid
from repae_jax.data.identity import Fingerprint
from repae_jax.data.outlines import SHAPES, outlines

CLASSES = tuple(SHAPES)
RESOLUTION = 64
TURN = 25.0  # degrees that an object is turned, at most, to either side
# The number of images in an epoch of each split; any number could be rendered.
COUNTS = {"train": 1 << 20, "heldout": 1 << 14}

VERSION = 1  # changes whenever the same index gives another picture

_SEEDS = {"train": 0, "heldout": 1}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A split of the scenes as a `Source`."""

    split: str
    count: int
    resolution: int = RESOLUTION
    num_classes: int = len(CLASSES)
    name: str = "scenes"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.image_name(index)}: there are {self.count}")
        image, label = render(_SEEDS[self.split], index, self.resolution)
        return {"image": image, "label": np.int32(label)}

    def image_name(self, index: int) -> str:
        return f"{self.name}, {self.split}, image {index}"

    def fingerprint(self) -> Fingerprint:
        return {"source": "scenes", "count": self.count, "version": VERSION}


def render(seed: int, index: int, resolution: int = RESOLUTION) -> tuple[np.ndarray, int]:
    """Image `index` of the stream `seed`: uint8 (resolution, resolution, 3), and its class.

    Classes alternate: any 24 consecutive images show all 24 classes.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    label = index % len(CLASSES)
    canvas = _background(rng, resolution)
    light = rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(2, 6)):
        composite(canvas, _clutter(rng, resolution), _texture(rng, resolution), light, rng)
    mask = _object(rng, CLASSES[label], resolution)
    composite(canvas, mask, _contrasting_texture(rng, canvas, mask), light, rng)
    for _ in range(rng.integers(0, 3)):
        thin = _stroke(rng, resolution)
        composite(canvas, thin, _texture(rng, resolution), light, rng)
    canvas *= rng.uniform(0.85, 1.15, 3)  # the light's color
    canvas += rng.normal(0, rng.uniform(0.003, 0.02), canvas.shape)
    return np.rint(255 * canvas.clip(0, 1)).astype(np.uint8), label


def _background(rng, resolution):
    """Clouds between two colors, under a gradient of light: (H, W, 3) in [0, 1]."""
    amount = clouds(rng, resolution, rng.uniform(1.2, 2.2))[..., None]
    first, second = rng.uniform(0.05, 0.95, (2, 3))
    y, x = grid(resolution)
    angle = rng.uniform(0, 2 * np.pi)
    slope = 1 + rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y)
    return (first + (second - first) * amount) * slope[..., None]


def _object(rng, name, resolution):
    """The coverage of the object: (H, W) in [0, 1]."""
    turn = np.deg2rad(rng.uniform(-TURN, TURN))
    shear, stretch = rng.uniform(-0.15, 0.15), rng.uniform(0.85, 1.15)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[stretch, shear], [0, 1 / stretch]]) * rng.uniform(0.42, 0.68)
    center = rng.uniform(-0.25, 0.25, 2)
    return fill_polygons([part @ matrix.T + center for part in outlines(name)], resolution)


def _clutter(rng, resolution):
    """The coverage of a blob or a stroke, which belong to no class: (H, W) in [0, 1]."""
    if rng.random() < 0.4:
        return _stroke(rng, resolution)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.full(40, rng.uniform(0.1, 0.35))
    for order in range(2, 5):
        radius *= 1 + rng.uniform(0, 0.3) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    blob = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return fill_polygons([blob * rng.uniform(0.6, 1.6, 2) + rng.uniform(-1, 1, 2)], resolution)


def _stroke(rng, resolution):
    """The coverage of a thin, slightly bent line: (H, W) in [0, 1]."""
    start, end = rng.uniform(-1.2, 1.2, (2, 2))
    middle = (start + end) / 2 + rng.normal(0, 0.2, 2)
    t = np.linspace(0, 1, 16)[:, None]
    line = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    across = np.array([[0, -1], [1, 0]]) @ (end - start)
    across *= rng.uniform(0.012, 0.05) / max(np.hypot(*across), 1e-6)
    return fill_polygons([np.concatenate([line + across, (line - across)[::-1]])], resolution)


def _texture(rng, resolution):
    """Plain, stripes, checks, dots or clouds between two colors: (H, W, 3) in [0, 1]."""
    first = rng.uniform(0.05, 0.95, 3)
    second = (first + rng.uniform(0.1, 0.6, 3) * rng.choice([-1, 1], 3)).clip(0, 1)
    y, x = grid(resolution)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(6, 20)
    phase = rng.uniform(0, 2 * np.pi, 2)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    waves = np.sin(pitch * u + phase[0]), np.sin(pitch * v + phase[1])
    kinds = (
        lambda: np.zeros_like(x),
        lambda: _soft(waves[0]),
        lambda: _soft(waves[0] * waves[1]),
        lambda: _soft(waves[0] + waves[1] - 1),
        lambda: clouds(rng, resolution, rng.uniform(0.6, 1.8)),
    )
    amount = kinds[rng.integers(len(kinds))]()[..., None]
    return first + (second - first) * amount


def _contrasting_texture(rng, canvas, mask):
    """A random texture that differs from the canvas below `mask`; the last of 8 if none does."""
    weight = mask[..., None] / max(mask.sum(), 1e-6)
    behind = (canvas * weight).sum((0, 1))
    for _ in range(8):
        texture = _texture(rng, len(mask))
        if np.abs((texture * weight).sum((0, 1)) - behind).mean() > 0.3:
            break
    return texture


def _soft(wave):
    """A wave in [-1, 1] with steep flanks, in [0, 1]."""
    return 0.5 + 0.5 * np.tanh(3 * wave)
