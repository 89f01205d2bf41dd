"""GroupNorm followed by SiLU, with few passes over the image.

In a large VAE at full resolution these norms move more memory than all other operations of the
training step together. The forward pass reads its input twice: for the moments, and to normalize.
The backward pass below reads input and gradient twice, and stores nothing of the image's size in
float32; the automatic gradient would.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers


class GroupNorm(nn.Module):
    """GroupNorm (eps 1e-6) over (B, H, W, C), then SiLU if `activate`; computed in float32.

    It supports reverse-mode gradients only, because its gradient is written by hand.
    """

    groups: int
    dtype: jnp.dtype
    activate: bool = True
    epsilon: float = 1e-6
    stripes: int = 1  # per image, see models/stripes.py

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> the same shape in `dtype`; `groups` must divide C."""
        channels = x.shape[-1]
        scale = self.param("scale", initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", initializers.zeros, (channels,), jnp.float32)
        dtype = jnp.dtype(self.dtype).name
        settings = (self.groups, self.epsilon, self.activate, dtype, self.stripes)
        return _group_norm(x, scale, bias, *settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def _group_norm(x, scale, bias, groups, epsilon, activate, dtype, stripes):
    return _forward(x, scale, bias, groups, epsilon, activate, dtype, stripes)[0]


def _forward(x, scale, bias, groups, epsilon, activate, dtype, stripes):
    mean, variance = _moments(x)
    group_mean = _over_group(mean, groups, stripes)
    # By the law of total variance channels stay innermost: no array is laid out by groups.
    group_variance = _over_group(variance + jnp.square(mean - group_mean), groups, stripes)
    rate = lax.rsqrt(group_variance + epsilon)
    y = (x.astype(jnp.float32) - group_mean) * (rate * scale) + bias
    y = nn.silu(y) if activate else y
    return y.astype(dtype), (x, scale, bias, group_mean, rate)


def _backward(groups, epsilon, activate, dtype, stripes, kept, gradient):
    """The gradients by x, scale and bias.

    With n = (x - mean) * rate, d the gradient at n * scale + bias, and <.> the mean over a group,

        dx = rate * (d * scale - <d * scale> - n * <d * scale * n>).
    """
    x, scale, bias, group_mean, rate = kept

    def normalized_and_gradient(x, gradient):
        normalized = (x.astype(jnp.float32) - group_mean) * rate
        gradient = gradient.astype(jnp.float32)
        if not activate:
            return normalized, gradient
        y = normalized * scale + bias
        gate = nn.sigmoid(y)
        return normalized, gradient * gate * (1.0 + y * (1.0 - gate))

    normalized, d = normalized_and_gradient(x, gradient)
    along, across = lax.platform_dependent(
        d, normalized, cuda=_packed_means, rocm=_packed_means, default=_means
    )
    # Recomputed for the second pass: without the barrier the compiler would keep both arrays in
    # float32 from the first pass.
    normalized, d = normalized_and_gradient(*lax.optimization_barrier((x, gradient)))
    dx = d * scale - _over_group(along * scale, groups, stripes)
    dx = rate * (dx - normalized * _over_group(across * scale, groups, stripes))
    pixels = x.shape[1] * x.shape[2]
    dscale, dbias = (pixels * part.sum(axis=(0, 1, 2)) for part in (across, along))
    return dx.astype(x.dtype), dscale, dbias


_group_norm.defvjp(_forward, _backward)


def _moments(x):
    """Each channel's mean and variance over the image, (B, 1, 1, C) each, in one pass.

    The moments are taken about the channel's first value, because the plain one-pass formula would
    subtract two large numbers.
    """
    about = x[:, :1, :1].astype(jnp.float32)
    moved = x.astype(jnp.float32) - about
    first = moved.mean(axis=(1, 2), keepdims=True)
    second = jnp.square(moved).mean(axis=(1, 2), keepdims=True)
    return about + first, jnp.maximum(second - jnp.square(first), 0.0)


def _means(d, normalized):
    """The means of `d` and of `d * normalized` over the image, (B, 1, 1, C) each."""
    along = d.mean(axis=(1, 2), keepdims=True)
    return along, (d * normalized).mean(axis=(1, 2), keepdims=True)


def _packed_means(d, normalized):
    """`_means` as one sum of complex numbers.

    For two sums, XLA's compiler for GPUs would write `d` to memory instead of computing it twice.
    """
    both = lax.complex(d, d * normalized).mean(axis=(1, 2), keepdims=True)
    return both.real, both.imag


def _over_group(values, groups, stripes):
    """(B k, 1, 1, C) -> the mean over an image's stripes and each channel's group, (B k, 1, 1, C).

    The values are means over stripes of equal size.
    """
    grouped = values.reshape(-1, stripes, 1, groups, values.shape[-1] // groups)
    mean = jnp.broadcast_to(grouped.mean(axis=(1, -1), keepdims=True), grouped.shape)
    return mean.reshape(values.shape)
