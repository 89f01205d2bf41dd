"""A convolution whose kernel gradient is computed in one of two ways.

With y = conv(x, k), stride s, and g = dL/dy, tap (i, j) of the kernel has the gradient

    dL/dk[i, j] = sum over b, p, q of x[b, s p + i, s q + j]^T g[b, p, q]

(x padded): all taps together are one product of matrices with B H W rows. Differentiating XLA's
convolution gives them as a convolution whose window is the whole image. GPUs and TPUs have kernels
for that; on a CPU the product is several times faster where images are large
(benchmarks/kernel_gradient.py).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

# The same operations, other rounding.
KERNEL_GRADIENTS = {
    "convolution": "as XLA differentiates it; for GPUs and TPUs",
    "products": "matrix products, a few rows of the image at a time; for CPUs",
}
_PATCHES = 1_300_000  # values that one product looks at: 5 MB, about what a core's cache holds

Padding = tuple[tuple[int, int], tuple[int, int]]


class Conv(nn.Module):
    """A square 2-D convolution over (B, H, W, C).

    Parameters: "kernel" (k, k, C, features) and, with `use_bias`, "bias" (features,), float32.
    """

    features: int
    size: int
    stride: int
    padding: Padding
    use_bias: bool
    dtype: jnp.dtype
    kernel_init: Initializer
    bias_init: Initializer
    kernel_gradient: str = "convolution"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', features) of `dtype`."""
        if self.kernel_gradient not in KERNEL_GRADIENTS:
            known = ", ".join(KERNEL_GRADIENTS)
            raise ValueError(f"no kernel gradient {self.kernel_gradient!r}: use one of {known}")
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel_gradient == "convolution":
            x = _convolve(x, kernel, self.stride, self.padding)
        elif self.size == self.stride == 1 and self.padding == ((0, 0), (0, 0)):
            x = _multiply(x, kernel)
        else:
            x = _convolve_by_products(x, kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


def _convolve(x, kernel, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


def _multiply(x, kernel):
    """A convolution of one tap; XLA's CPU compiler runs it several times faster as a product."""
    products = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return products.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_by_products(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, kept, g):
    x, kernel = kept
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(g)
    return dx, _products(x, g, kernel.shape[:2], stride, padding)


def _products(x, g, size, stride, padding):
    """The kernel's gradient (h, w, C, D) from x (B, H, W, C) and g (B, H', W', D).

    A few rows of all images after the others, so that what all taps see of them, h w times as much
    as there is, stays in the cache.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    batch, height, width, features = g.shape
    (h, w), channels = size, x.shape[-1]
    rows = _rows(height, batch * width * h * w * channels)
    tall, wide = stride * (rows - 1) + 1, stride * (width - 1) + 1

    def add(total, start):
        seen = lax.dynamic_slice_in_dim(x, stride * start, tall + h - 1, axis=1)
        taps = [
            seen[:, i : i + tall : stride, j : j + wide : stride]
            for i in range(h)
            for j in range(w)
        ]
        patches = jnp.concatenate(taps, axis=-1).reshape(-1, h * w * channels)
        upstream = lax.dynamic_slice_in_dim(g, start, rows, axis=1).reshape(-1, features)
        # Summed in float32, as one product would be.
        return total + jnp.matmul(upstream.T, patches, preferred_element_type=jnp.float32), None

    zeros = jnp.zeros((features, h * w * channels), jnp.float32)
    total, _ = lax.scan(add, zeros, jnp.arange(0, height, rows))
    return total.T.reshape(h, w, channels, features).astype(x.dtype)


def _rows(height, values):
    """How many rows of `values` patch values each to take at once: a divisor of `height`."""
    fitting = (n for n in range(1, height + 1) if height % n == 0 and n * values <= _PATCHES)
    return max(fitting, default=1)


_convolve_by_products.defvjp(_forward, _backward)
