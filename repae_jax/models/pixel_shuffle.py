"""2 x 2 pixels as channels, and back, in PyTorch's order of channels."""

import jax


def unshuffle(x: jax.Array) -> jax.Array:
    """Pixels of 2 x 2 blocks become channels: (B, H, W, C) -> (B, H / 2, W / 2, 4 C).

    The order of channels is PyTorch's: c * 4 + dy * 2 + dx.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)


def shuffle(x: jax.Array) -> jax.Array:
    """The inverse of `unshuffle`: (B, H, W, 4 C) -> (B, 2 H, 2 W, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)
