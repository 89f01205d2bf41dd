"""A small convolutional detector: for each cell of a grid an object's presence, shape, color, box.

Coordinates are those of an image from -1 to 1, x to the right and y downwards. Several cells around
an object's center predict it, so a center on the border of two cells is found as well.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from repae_jax.models.convnet import ConvLevel


@flax.struct.dataclass
class Grid:
    """What g x g cells predict.

    Attributes:
      presence: (B, g, g) logits of an object's presence.
      shape: (B, g, g, shapes) logits of its shape.
      color: (B, g, g, colors) logits of its color.
      box: (B, g, g, 4) its left, top, right and bottom edge.
    """

    presence: jax.Array
    shape: jax.Array
    color: jax.Array
    box: jax.Array


class Detector(nn.Module):
    """A convolution, levels each of which halves the image's side, and a head at every position.

    Attributes:
      channels: channels of each level.
      shapes: number of shapes.
      colors: number of colors.
    """

    channels: tuple[int, ...]
    shapes: int
    colors: int

    def setup(self):
        self.stem = nn.Conv(self.channels[0] // 2, (3, 3))
        self.levels = [ConvLevel(width, name=f"level_{i}") for i, width in enumerate(self.channels)]
        self.norm_in, self.norm_out = nn.GroupNorm(8), nn.GroupNorm(8)
        self.mix = nn.Conv(self.channels[-1], (3, 3))
        self.presence, self.box = nn.Dense(1), nn.Dense(4)
        self.shape, self.color = nn.Dense(self.shapes), nn.Dense(self.colors)

    def __call__(self, images: jax.Array) -> Grid:
        """Map images (B, H, W, 3) in [-1, 1] to a grid of H / 2 ** levels cells along a side."""
        x = self.features(images)
        center = cell_centers(x.shape[1])
        return Grid(
            presence=self.presence(x)[..., 0],
            shape=self.shape(x),
            color=self.color(x),
            box=self.box(x) + jnp.concatenate([center, center], -1),
        )

    def features(self, images: jax.Array) -> jax.Array:
        """Map images (B, H, W, 3) in [-1, 1] to what the heads read, (B, g, g, channels[-1])."""
        x = nn.silu(self.stem(images))
        for level in self.levels:
            x = level(x)
        x = self.mix(nn.silu(self.norm_in(x)))
        return nn.silu(self.norm_out(x))


def cell_centers(side: int) -> jax.Array:
    """The centers (g, g, 2) of the cells of a grid with `side` cells, x before y."""
    line = (jnp.arange(side) + 0.5) * (2 / side) - 1
    return jnp.stack(jnp.meshgrid(line, line, indexing="xy"), -1)


def assign_cells(boxes: jax.Array, valid: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Which object every cell predicts: the one with the nearest center, if it is near enough.

    Args:
      boxes: (B, K, 4).
      valid: (B, K) whether there is a K-th object.
      side: cells along a side.

    Returns:
      positive (B, g, g), whether the cell predicts an object, and its index (B, g, g) in 0..K-1.
    """
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    away = jnp.abs(cell_centers(side)[None, :, :, None] - centers[:, None, None]).max(-1)
    away = jnp.where(valid[:, None, None], away, jnp.inf)
    reach = 1.6 / side  # 0.8 cells: one or two cells along each axis
    return away.min(-1) < reach, away.argmin(-1)
