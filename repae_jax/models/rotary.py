"""Rotary position embedding (arXiv 2104.09864) of tokens in a row, and in a grid (EVA-02)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 1e4
_LONGEST = 100.0  # the bound of DINOv3's periods


@functools.cache
def angles(grid: int, width: int) -> np.ndarray:
    """The angle of each pair of features at each token of the grid, (grid * grid, width / 2).

    The first half of the pairs turns with the row, the second half with the column; in each half,
    pair i turns by 1e4 ** (-i / (width / 4)) per token.

    Raises:
      ValueError: `width` is not divisible by 4.
    """
    rows, columns = np.indices((grid, grid))
    return _axial(rows, columns, width)


def rotate(x: jax.Array, grid: int) -> jax.Array:
    """Rotate the pairs (2 i, 2 i + 1) of each head's features by the token's place, in float32.

    Args:
      x: queries or keys (B, N, heads, D): the grid's tokens in row-major order, and behind them
        tokens without a place, which stay as they are.
      grid: tokens along a side.

    Returns:
      (B, N, heads, D) in the type of `x`.
    """
    without_place = x.shape[1] - grid * grid
    turns = np.pad(angles(grid, x.shape[-1]), ((0, without_place), (0, 0)))[:, None]
    return _turned_pairs(x, np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32))


def rotate_halves(x: jax.Array, base: float) -> jax.Array:
    """Rotate the pairs (i, i + D / 2) of each head's features by the token's place, in float32.

    Pair i turns by base ** (-2 i / D) per token: the layout of Llama, Gemma and Qwen.

    Args:
      x: queries or keys (B, L, heads, D) of the tokens 0, 1, ..., L - 1.
      base: the base of the frequencies.

    Returns:
      (B, L, heads, D) in the type of `x`.
    """
    length, _, dim = x.shape[1:]
    frequencies = base ** (-np.arange(0, dim, 2) / dim)
    turns = np.outer(np.arange(length), frequencies)[:, None]
    return _turned(x, np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32))


def grid_periods(width: int) -> np.ndarray:
    """The periods for `grid_turns` of heads of this width, (width / 4,): powers of 100 from 1."""
    count = width // 4
    return (_LONGEST ** (np.arange(count) / count)).astype(np.float32)


def grid_turns(rows: int, columns: int, periods: jax.Array) -> jax.Array:
    """DINOv3's angles of the pairs at each patch, (rows * columns, 2 * len(periods)), float32.

    A patch's center has the coordinates ((row + 1/2) / rows, (column + 1/2) / columns), mapped to
    [-1, 1]; pairs turn by 2 pi * coordinate / period, first with the row, then with the column
    (arXiv 2508.10104, section 3.2).
    """
    across = [2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns)]
    places = np.stack(np.meshgrid(*across, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    turns = 2 * np.pi * places.astype(np.float32) / periods
    return turns.reshape(rows * columns, -1)


def pair_turns(rows: int, columns: int, width: int, first: int) -> np.ndarray:
    """PE's angles of the pairs at each patch, (rows * columns, width / 2), float32.

    The first half of the pairs turns with the column, the second half with the row; in each half,
    pair i turns by 1e4 ** (-i / (width / 4)) per patch (arXiv 2504.13181, section 2.1, and its
    code).

    Args:
      rows, columns: the patches.
      width: features of a head, a multiple of 4.
      first: the position of the first row and column; PE has 1 behind a class token, which has 0.

    Raises:
      ValueError: `width` is not divisible by 4.
    """
    row, column = np.indices((rows, columns)) + first
    return _axial(column, row, width).astype(np.float32)


def turn_pairs(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotate the pairs (2 i, 2 i + 1) of the last tokens by `turns`, in float32.

    The arguments are those of `turn_halves`.
    """
    turns = jnp.pad(turns, ((x.shape[1] - len(turns), 0), (0, 0)))[:, None]
    return _turned_pairs(x, jnp.cos(turns), jnp.sin(turns))


def turn_halves(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + D / 2) of the last tokens by `turns`, in float32.

    Args:
      x: queries or keys (B, N, heads, D).
      turns: angles (n, D / 2) of the last n tokens; those before stay as they are.

    Returns:
      (B, N, heads, D) in the type of `x`.
    """
    turns = jnp.pad(turns, ((x.shape[1] - len(turns), 0), (0, 0)))[:, None]
    return _turned(x, jnp.cos(turns), jnp.sin(turns))


def _axial(first, second, width):
    """Angles (N, width / 2): of half the pairs at the positions `first`, of the others `second`."""
    if width % 4:
        raise ValueError(f"rotary positions in a grid need a width divisible by 4, got {width}")
    frequencies = _BASE ** (-np.arange(width // 4) / (width / 4))
    return np.concatenate([np.outer(places, frequencies) for places in (first, second)], axis=1)


def _turned_pairs(x, cos, sin):
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _turned(x, cos, sin):
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
