"""Convolutions over tokens with spectral normalization (arXiv 1802.05957), as in PyTorch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from repae_jax.models.convolution import add_bias, torch_uniform

_EPSILON = 1e-12  # the smallest norm that a vector of the power iteration is divided by


class SpectralConv1d(nn.Module):
    """A convolution over circular tokens (B, N, C), whose kernel has the spectral norm 1.

    The kernel is divided by sigma = u^T W v, with W its matrix of (k, C) columns and one row per
    output channel. Each call in training does one step of the power iteration first, and
    differentiates sigma at fixed u and v (torch.nn.utils.spectral_norm). Weights are initialized as
    in PyTorch, u and v as random unit vectors.

    Attributes:
      features: output channels.
      kernel: the kernel's length, odd.
      dtype: the type of the convolution; parameters, u, v and sigma are float32.
    """

    features: int
    kernel: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(B, N, C) -> (B, N, features).

        Args:
          x: the tokens, at least (kernel - 1) / 2 of them.
          train: do a step of the power iteration, and keep its u and v where `batch_stats` is
            mutable; otherwise take u and v as they are.
        """
        shape = (self.kernel, x.shape[-1], self.features)
        init = torch_uniform(self.kernel * x.shape[-1])
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", init, shape[-1:], jnp.float32)
        u = self.variable("batch_stats", "u", self._unit_vector, shape[-1:])
        v = self.variable("batch_stats", "v", self._unit_vector, shape[:-1])
        left, right = u.value, v.value
        if train and not self.is_initializing():
            left, right = power_iteration(stop_gradient(kernel), left)
            if self.is_mutable_collection("batch_stats"):
                u.value, v.value = left, right
        kernel = kernel / _spectral_norm(kernel, left, right)
        y = _convolve_circular(x.astype(self.dtype), kernel.astype(self.dtype))
        return add_bias(y, bias)

    def _unit_vector(self, shape):
        return _unit(jax.random.normal(self.make_rng("params"), shape))


def power_iteration(kernel: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step: v = W^T u and u = W v, both divided by their norms.

    Args:
      kernel: (k, C, features), the matrix W.
      u: (features,), a unit vector.

    Returns:
      u (features,) and v (k, C).
    """
    v = _unit(jnp.einsum("kio,o->ki", kernel, u, precision=jax.lax.Precision.HIGHEST))
    return _unit(_times(kernel, v)), v


class InstanceNorm(nn.Module):
    """Normalizes each channel of each (N, C) over the tokens, with a learned scale and bias.

    Attributes:
      epsilon: added to the (biased) variance.
      dtype: the type of the result; statistics are float32.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        channels = x.shape[-1:]
        x = x.astype(jnp.float32)
        x = x - x.mean(axis=1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + self.epsilon)
        x = x * self.param("scale", nn.initializers.ones, channels, jnp.float32)
        x = x + self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        return x.astype(self.dtype)


def _spectral_norm(kernel, u, v):
    return jnp.dot(u, _times(kernel, v), precision=jax.lax.Precision.HIGHEST)


def _times(kernel, v):
    return jnp.einsum("kio,ki->o", kernel, v, precision=jax.lax.Precision.HIGHEST)


def _unit(x):
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum()), _EPSILON)


def _convolve_circular(x, kernel):
    pad = len(kernel) // 2
    if pad:
        x = jnp.concatenate([x[:, -pad:], x, x[:, :pad]], axis=1)
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), ((0, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    )
