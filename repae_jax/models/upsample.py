"""Nearest-neighbor up-sampling and the 3x3 convolution after it, as one convolution.

Along one axis, with x_i repeated at 2i and 2i + 1 and the kernel (k0, k1, k2) centered,

    y[2i]     = k0 x[i - 1] + (k1 + k2) x[i]
    y[2i + 1] = (k0 + k1) x[i] + k2 x[i + 1].

So every output needs two taps of the small image instead of three: 4/9 of the operations in two
dimensions. One convolution with two taps and twice the features computes both formulas: at position
p, between x[p - 1] and x[p], it gives y[2p - 1] and y[2p], which are neighbors in the output.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from repae_jax.models.convolution import add_bias, torch_uniform
from repae_jax.models.stripes import add_rows

# The kernel's taps in the two-tap kernels of y[2p - 1] and y[2p]: (output, tap of 2, tap of 3).
_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


class UpsampleConv(nn.Module):
    """Nearest-neighbor up-sampling by two, then a 3x3 convolution with zero padding.

    The parameters are those of the 3x3 convolution, in name and initialization: "kernel"
    (3, 3, C, features) and "bias" (features,), float32. Taps are added in float32, then cast to
    `dtype`.
    """

    in_features: int
    features: int
    dtype: jnp.dtype = jnp.float32
    stripes: int = 1  # per image, see models/stripes.py

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, in_features) -> (B, 2H, 2W, features)."""
        batch, height, width, channels = x.shape
        init = torch_uniform(9 * self.in_features)
        kernel = self.param("kernel", init, (3, 3, channels, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        taps = jnp.einsum(
            "ytk,xul,klcd->tucyxd", _TAPS, _TAPS, kernel, precision=lax.Precision.HIGHEST
        )
        taps = taps.reshape(2, 2, channels, -1).astype(self.dtype)
        y = _convolve(x.astype(self.dtype), taps, self.stripes)
        y = y.reshape(batch, height + 1, width + 1, 2, 2, self.features).swapaxes(2, 3)
        y = y.reshape(batch, 2 * height + 2, 2 * width + 2, self.features)
        return add_bias(y[:, 1:-1, 1:-1], bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, taps, stripes):
    """A 2x2 convolution of the image with a border of zeros: (B, H + 1, W + 1, features)."""
    return _valid(_add_border(x, stripes), taps)


def _convolve_forward(x, taps, stripes):
    return _convolve(x, taps, stripes), (x, taps)


def _convolve_backward(stripes, kept, gradient):
    """The automatic gradients, except that the kernel's gradient reads an explicitly padded image.

    Its window has the size of the output and exceeds the image without the border. The compilers
    would otherwise turn the border into padding of the convolution, which they compile badly.
    """
    x, taps = kept
    (dx,) = jax.linear_transpose(lambda x: _valid(_add_border(x, stripes), taps), x)(gradient)
    bordered = lax.optimization_barrier(_add_border(x, stripes))
    (dtaps,) = jax.linear_transpose(lambda taps: _valid(bordered, taps), taps)(gradient)
    return dx, dtaps


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _add_border(x, stripes):
    """Add a row and a column on each side: zeros at an image's border, else the neighbors' rows."""
    if stripes == 1:
        return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.pad(add_rows(x, stripes, 1, 1), ((0, 0), (0, 0), (1, 1), (0, 0)))


def _valid(x, taps):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, taps, (1, 1), "VALID", dimension_numbers=numbers)
