"""Resizing as two small matrix products: PyTorch's bicubic, and bilinear as in PyTorch or TF 1."""

import jax
import jax.numpy as jnp
import numpy as np


def bicubic_matrix(
    size_in: int, size_out: int, *, a: float | None = None, antialias: bool = False
) -> np.ndarray:
    """The matrix (size_out, size_in), float32, that resamples one axis as PyTorch does.

    It equals torch.nn.functional.interpolate(mode="bicubic", align_corners=False): pixel centers
    are at half integers. Without antialias the border pixel repeats outside; with antialias the
    filter widens by the factor of reduction, and is cut and renormalized at the border.

    Args:
      size_in: input samples along the axis.
      size_out: output samples along the axis.
      a: the cubic's free coefficient; None is torch's choice: -0.5 with antialias, else -0.75.
      antialias: whether a low-pass filter precedes a reduction.
    """
    if a is None:
        a = -0.5 if antialias else -0.75
    return _matrix(size_in, size_out, lambda x: _cubic(x, a), 2, antialias)


def resize_bicubic(
    x: jax.Array, height: int, width: int, *, a: float | None = None, antialias: bool = False
) -> jax.Array:
    """(B, H, W, C) -> (B, height, width, C), float32; see `bicubic_matrix` for the convention."""
    rows = bicubic_matrix(x.shape[1], height, a=a, antialias=antialias)
    columns = bicubic_matrix(x.shape[2], width, a=a, antialias=antialias)
    return _resample(x, rows, columns)


def bilinear_matrix(size_in: int, size_out: int, *, antialias: bool = False) -> np.ndarray:
    """The matrix (size_out, size_in), float32, that resamples one axis as PyTorch does.

    It equals torch.nn.functional.interpolate(mode="bilinear", align_corners=False), with the pixel
    centers, border and antialias of `bicubic_matrix`.

    Args:
      size_in: input samples along the axis.
      size_out: output samples along the axis.
      antialias: whether a low-pass filter precedes a reduction.
    """
    return _matrix(size_in, size_out, _triangle, 1, antialias)


def resize_bilinear(x: jax.Array, height: int, width: int, *, antialias: bool = False) -> jax.Array:
    """(B, H, W, C) -> (B, height, width, C), float32; see `bilinear_matrix`."""
    rows = bilinear_matrix(x.shape[1], height, antialias=antialias)
    return _resample(x, rows, bilinear_matrix(x.shape[2], width, antialias=antialias))


def bilinear_matrix_tf1(size_in: int, size_out: int) -> np.ndarray:
    """The matrix (size_out, size_in), float32, that resamples one axis as TensorFlow 1 does.

    It equals tf.compat.v1.image.resize_bilinear with its defaults: sample o lies at o * in / out,
    without a half-pixel shift, so the first samples coincide and the last input pixel is repeated;
    there is no antialias.

    Args:
      size_in: input samples along the axis.
      size_out: output samples along the axis.
    """
    # float32 as in TensorFlow's kernel: at integer positions rounding selects the neighbor
    position = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)
    low = position.astype(int).clip(0, size_in - 1)
    fraction = (position - low).astype(np.float32)
    rows, matrix = np.arange(size_out), np.zeros((size_out, size_in), np.float32)
    matrix[rows, low] = 1.0 - fraction
    matrix[rows, (low + 1).clip(0, size_in - 1)] += fraction
    return matrix


def resize_bilinear_tf1(x: jax.Array, height: int, width: int) -> jax.Array:
    """(B, H, W, C) -> (B, height, width, C), float32; see `bilinear_matrix_tf1`."""
    rows = bilinear_matrix_tf1(x.shape[1], height)
    return _resample(x, rows, bilinear_matrix_tf1(x.shape[2], width))


def _resample(x, rows, columns):
    # default precision would round the pixels to bfloat16 on TPUs and to TF32 on GPUs
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("oh,bhwc->bowc", rows, x.astype(jnp.float32), precision=exact)
    return jnp.einsum("pw,bowc->bopc", columns, x, precision=exact)


def _matrix(size_in, size_out, kernel, support, antialias):
    """The matrix of a kernel that vanishes `support` input samples away from an output's center."""
    scale = size_in / size_out
    centers = (np.arange(size_out)[:, None] + 0.5) * scale
    if antialias:
        stretch = max(scale, 1.0)
        return _antialiased_matrix(centers, size_in, stretch, kernel, support).astype(np.float32)
    first = np.floor(centers - 0.5).astype(int) - (support - 1)
    taps = first + np.arange(2 * support)  # (out, 2 * support)
    matrix = np.zeros((size_out, size_in))
    rows = np.broadcast_to(np.arange(size_out)[:, None], taps.shape)
    # several taps may be clamped to the same border pixel, so their weights add up
    np.add.at(matrix, (rows, taps.clip(0, size_in - 1)), kernel(taps + 0.5 - centers))
    return matrix.astype(np.float32)


def _antialiased_matrix(centers, size_in, stretch, kernel, support):
    positions = np.arange(size_in)[None, :]
    reach = support * stretch
    inside = (positions >= np.floor(centers - reach + 0.5)) & (
        positions < np.floor(centers + reach + 0.5)
    )
    weights = np.where(inside, kernel((positions + 0.5 - centers) / stretch), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x):
    """The kernel of linear interpolation; zero for |x| >= 1."""
    return np.maximum(1 - np.abs(x), 0.0)


def _cubic(x, a):
    """Keys' cubic convolution kernel; zero for |x| >= 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
