"""A convolution whose kernel gradient is computed in one of two ways.

With y = conv(x, k), stride s, and g = dL/dy, tap (i, j) of the kernel has the gradient

    dL/dk[i, j] = sum over b, p, q of x[b, s p + i, s q + j]^T g[b, p, q]

(x padded), a product of two matrices with B H W rows. Differentiating XLA's convolution gives all
taps as one convolution whose window is the whole image. GPUs and TPUs have kernels for that; on a
CPU the products are several times faster where images are large (benchmarks/kernel_gradient.py).
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
    "products": "a matrix product for each tap of the kernel; for CPUs",
}

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
        apply = _convolve if self.kernel_gradient == "convolution" else _convolve_by_products
        x = apply(x.astype(self.dtype), kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


def _convolve(x, kernel, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


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

    One tap after the other, so that what one of them sees of x is in memory once, not size times.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (stride * (n - 1) + 1 for n in g.shape[1:3])
    g = g.reshape(-1, g.shape[-1])

    def tap(place):
        seen = lax.dynamic_slice(x, (0, *place, 0), (x.shape[0], rows, columns, x.shape[3]))
        seen = seen[:, ::stride, ::stride].reshape(-1, x.shape[-1])
        return seen.T @ g

    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"), -1).reshape(-1, 2)
    return lax.map(tap, places).reshape(*size, x.shape[-1], g.shape[-1])


_convolve_by_products.defvjp(_forward, _backward)
