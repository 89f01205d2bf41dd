"""The shapes of the scenes' classes, as polygons.

A shape is a list of outlines (V, 2), x to the right and y downwards, within the unit circle; the
first outline is filled, the others are holes. No shape becomes another when turned by up to
`scenes.TURN`.
"""

import functools

import numpy as np

Outlines = tuple[np.ndarray, ...]

_CURVE = 96  # corners of a circle


@functools.cache
def outlines(name: str) -> Outlines:
    """The outlines of a shape of `SHAPES`, its bounding box centered, its largest radius 1."""
    parts = [np.asarray(part, np.float64) for part in SHAPES[name]()]
    outer = parts[0]
    middle = (outer.min(0) + outer.max(0)) / 2
    reach = np.hypot(*(outer - middle).T).max()
    return tuple((part - middle) / reach for part in parts)


def _circle(radius=1.0, start=0.0, end=2 * np.pi, center=(0.0, 0.0)):
    angle = np.linspace(start, end, _CURVE)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius + center


def _polygon(corners):
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _star(points, inner):
    corners = _polygon(2 * points)
    corners[1::2] *= inner
    return corners


def _wavy(lobes, depth, sharpness):
    """A circle whose radius oscillates `lobes` times by `depth`; `sharpness` makes it square."""
    angle = np.linspace(0, 2 * np.pi, 4 * _CURVE, endpoint=False)
    swing = np.tanh(sharpness * np.cos(lobes * angle)) / np.tanh(sharpness)
    return ((1 - depth) + depth * swing)[:, None] * np.stack([np.sin(angle), -np.cos(angle)], 1)


def _crescent():
    back = _circle(0.85, -1.94, 1.94, (-0.55, 0.0))[::-1]
    return np.concatenate([_circle(1.0, -2.30, 2.30, (-0.2, 0.0)), back])


def _drop():
    angle = np.linspace(0, 2 * np.pi, _CURVE)
    return np.stack([np.sin(angle) * np.sin(angle / 2) ** 2, -np.cos(angle)], 1) * (0.9, -1.0)


def _heart():
    angle = np.linspace(0, 2 * np.pi, _CURVE)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y], 1)


SHAPES = {
    "disc": lambda: [_circle()],
    "ring": lambda: [_circle(), _circle(0.55)],
    "half disc": lambda: [_circle(1.0, np.pi, 2 * np.pi)],
    "sector": lambda: [np.concatenate([_circle(1.0, 0.6, 2 * np.pi - 0.6), [(0.0, 0.0)]])],
    "crescent": lambda: [_crescent()],
    "drop": lambda: [_drop()],
    "heart": lambda: [_heart()],
    "flower": lambda: [_wavy(5, 0.28, 0.5)],
    "gear": lambda: [_wavy(9, 0.13, 4.0), _circle(0.3)],
    "triangle": lambda: [_polygon(3)],
    "square": lambda: [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "frame": lambda: [
        [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)],
    ],
    "rhombus": lambda: [[(0, -1), (0.55, 0), (0, 1), (-0.55, 0)]],
    "trapezium": lambda: [[(-0.45, -0.6), (0.45, -0.6), (1, 0.6), (-1, 0.6)]],
    "star": lambda: [_star(5, 0.42)],
    "burst": lambda: [_star(11, 0.6)],
    "cross": lambda: [
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1),
         (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    ],
    "arrow": lambda: [
        [(0, -3), (2, -0.6), (0.8, -0.6), (0.8, 3), (-0.8, 3), (-0.8, -0.6), (-2, -0.6)]
    ],
    "chevron": lambda: [[(-3, 1), (0, -2), (3, 1), (3, 3), (0, 0), (-3, 3)]],
    "L": lambda: [[(-2, -3), (-0.5, -3), (-0.5, 1.5), (2, 1.5), (2, 3), (-2, 3)]],
    "T": lambda: [[(-3, -3), (3, -3), (3, -1.4), (0.8, -1.4), (0.8, 3), (-0.8, 3), (-0.8, -1.4),
                   (-3, -1.4)]],
    "U": lambda: [[(-3, -3), (-1.3, -3), (-1.3, 1.3), (1.3, 1.3), (1.3, -3), (3, -3), (3, 3),
                   (-3, 3)]],
    "H": lambda: [[(-3, -3), (-1.4, -3), (-1.4, -0.8), (1.4, -0.8), (1.4, -3), (3, -3), (3, 3),
                   (1.4, 3), (1.4, 0.8), (-1.4, 0.8), (-1.4, 3), (-3, 3)]],
    "Z": lambda: [[(-3, -3), (3, -3), (3, -1.5), (-0.6, 1.5), (3, 1.5), (3, 3), (-3, 3), (-3, 1.5),
                   (0.6, -1.5), (-3, -1.5)]],
}  # fmt: skip
