"""Images as stripes: rows folded into the batch, for devices that hold few images at a time.

A TPU keeps eight rows of the batch in a tile of its memory. With fewer images per device, its
compiler pads the batch, and converts layouts before and after every convolution. Folding rows into
the batch, (B, H, W, C) -> (B k, H / k, W, C), fills the tile; each stripe then takes the rows that
a convolution needs beyond its border from its neighbors.

Functions here take `stripes`, the number k of stripes per image; 1 means whole images.
"""

import jax
import jax.numpy as jnp

TILE = 8  # rows of a batch in a tile of a TPU's memory
SMALLEST = 4  # rows of a stripe; a 3 x 3 convolution adds two of its neighbors'


def stripes_for(platform: str, images: int) -> int:
    """The most stripes per image that a device gains from.

    Args:
      platform: as `jax.Device.platform`.
      images: the images that the device has at a time.
    """
    return TILE if platform == "tpu" and images < TILE else 1


def fold(x: jax.Array, stripes: int) -> jax.Array:
    """(B, H, W, C) -> (B k, H / k, W, C); k divides H."""
    batch, height, width, channels = x.shape
    return x.reshape(batch * stripes, height // stripes, width, channels)


def unfold(x: jax.Array, stripes: int) -> jax.Array:
    """(B k, h, W, C) -> (B, h k, W, C), the inverse of `fold`."""
    batch, height, width, channels = x.shape
    return x.reshape(batch // stripes, height * stripes, width, channels)


def restripe(x: jax.Array, stripes: int, most: int) -> tuple[jax.Array, int]:
    """Images in `stripes` stripes -> in as many as suit their height, and that number.

    Args:
      x: (B k, h, W, C).
      stripes: k.
      most: the most stripes per image, see `choose_stripes`.
    """
    wanted = choose_stripes(x.shape[1] * stripes, most)
    return (x if stripes == wanted else fold(unfold(x, stripes), wanted)), wanted


def choose_stripes(height: int, most: int) -> int:
    """The number of stripes for images of `height` rows: the largest power of two up to `most`.

    A stripe has an even number of rows, so that it can be halved, and at least `SMALLEST`.
    """
    stripes = 1
    while 2 * stripes <= most and height % (4 * stripes) == 0:
        if height // (2 * stripes) < SMALLEST:
            break
        stripes *= 2
    return stripes


def add_rows(x: jax.Array, stripes: int, above: int, below: int) -> jax.Array:
    """(B k, h, W, C) -> (B k, above + h + below, W, C), with rows of the neighboring stripes.

    The rows beyond an image's border are zeros.
    """
    parts = [x]
    if above:
        parts.insert(0, _shift(x[:, -above:], stripes, 1))
    if below:
        parts.append(_shift(x[:, :below], stripes, -1))
    return jnp.concatenate(parts, axis=1)


def _shift(rows, stripes, by):
    """Each stripe's rows to the next stripe (`by` 1) or the previous one (-1) of the same image."""
    batch, *shape = rows.shape
    rows = rows.reshape(batch // stripes, stripes, *shape)
    zeros = jnp.zeros_like(rows[:, :1])
    parts = [zeros, rows[:, :-1]] if by == 1 else [rows[:, 1:], zeros]
    return jnp.concatenate(parts, axis=1).reshape(batch, *shape)
