"""Layers shared by the models: position tables, linear layers, norms, attention, the MLP."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.models.convolution import add_bias, torch_uniform
from repae_jax.models.rotary import rotate, turn_halves, turn_pairs


def sincos_position_table(dim: int, grid: int, step: float = 1.0) -> np.ndarray:
    """The fixed sin-cos table (grid * grid, dim) for a square grid of tokens in row-major order.

    The first half of the features encodes the column (x), the second half the row (y); in each
    half the sines come before the cosines, with frequencies 1e4 ** (-i / (dim / 4)), as in MAE.
    Rows and columns have the coordinates 0, step, 2 * step, and so on.

    Raises:
      ValueError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sin-cos table needs a width divisible by 4, got {dim}")
    omega = 1e4 ** (-np.arange(dim // 4, dtype=np.float64) / (dim / 4))
    rows, columns = step * np.indices((grid, grid))

    def encode(position):
        angles = np.outer(position.reshape(-1), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


# PyTorch's default initializer of a linear layer's weights; `Dense` then gives the biases theirs.
TORCH_KERNEL = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Dense(nn.Dense):
    """A linear layer over the last axis of (..., D) that merges the other axes before the product.

    It gives the same numbers as `nn.Dense`, except that `add_bias` sums the bias's gradient. The
    weight gradient contracts one axis instead of two, so XLA's CPU compiler needs no transposed
    copy of the layer's input (measured: a third off the time of the backbone's backward pass).

    With `TORCH_KERNEL` as `kernel_init`, the bias too starts as PyTorch's does.
    """

    use_bias: bool = False
    biased: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(..., D) -> (..., features)."""
        merged = inputs.reshape(-1, inputs.shape[-1])
        y = super().__call__(merged)
        if self.biased:
            torch_like = self.kernel_init is TORCH_KERNEL
            init = torch_uniform(inputs.shape[-1]) if torch_like else self.bias_init
            y = add_bias(y, self.param("bias", init, (self.features,), jnp.float32))
        return y.reshape(*inputs.shape[:-1], self.features)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU: x times the standard normal's distribution function at x."""
    return nn.gelu(x, approximate=False)


def tanh_gelu(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU."""
    return nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x): CLIP's approximation of GELU (arXiv 2103.00020)."""
    return x * nn.sigmoid(1.702 * x)


# The kernel that `attend` prefers, "cudnn" or "xla"; None chooses by this host's devices.
attention_kernel = jax.make_user_context(default_value=None)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v per head, the softmax in float32.

    On an NVIDIA GPU, in half precision, and for D up to 128 that 8 divides, this is cuDNN's fused
    kernel, which stores no N x M array; with a mask it takes even N and M. Otherwise XLA compiles
    the plain formula.

    Args:
      q: queries (B, N, heads, D).
      k, v: keys and values (B, M, groups, D); the groups divide the heads, and head j uses group
        j // (heads / groups) (grouped-query attention, arXiv 2305.13245).
      mask: (B or 1, 1, N or 1, M) bool, True where a query sees a key. A query that sees no key
        gets zeros.

    Returns:
      (B, N, heads, D).
    """
    dim = q.shape[-1]
    serves = q.dtype in (jnp.bfloat16, jnp.float16) and dim % 8 == 0 and dim <= 128
    if mask is not None:
        serves = serves and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    kernel = attention_kernel.value or ("cudnn" if has_cudnn_attention() else "xla")
    kernel = kernel if serves else "xla"
    whole = None
    if mask is not None:
        whole = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    options = dict(implementation=kernel, mask=whole)
    if q.dtype == jnp.float16 and kernel == "xla" and jax.default_backend() != "gpu":
        # JAX requests float16 products summed in float32, which only GPUs have
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        out = jax.nn.dot_product_attention(*wide, **options).astype(q.dtype)
    else:
        out = jax.nn.dot_product_attention(q, k, v, **options)
    if mask is None:
        return out
    return jnp.where(mask.any(-1).swapaxes(1, 2)[..., None], out, 0)


@functools.cache
def has_cudnn_attention() -> bool:
    """Whether the default device is an NVIDIA GPU that cuDNN's fused attention supports."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version.lower():  # AMD's are "gpu" too
        return False
    return float(device.compute_capability) >= 8.0


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D) with one fused projection for q, k and v.

    The softmax always runs in float32.

    Attributes:
      num_heads: the heads, which divide D.
      qk_norm: normalize queries and keys per head, by a LayerNorm with scale and bias (epsilon
        1e-5).
      dtype: the type of the matrix products.
      kernel_init: the initializer of the weights.
      rms: with `qk_norm`, an RMSNorm with a scale (epsilon 1e-6) in place of the LayerNorm.
      rotary_grid: rotate queries and keys by their place in a grid of this side (models/rotary.py);
        0 for none.
      pairs: the angles of a call are those of `turn_pairs`, in place of `turn_halves`.
    """

    num_heads: int
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: initializers.Initializer = initializers.xavier_uniform()
    rms: bool = False
    rotary_grid: int = 0
    pairs: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, turns: jax.Array | None = None
    ) -> jax.Array:
        """(B, N, D) -> (B, N, D), with the mask of `attend` and the angles of `turn_halves`."""
        batch, tokens, dim = x.shape
        qkv = Dense(3 * dim, dtype=self.dtype, kernel_init=self.kernel_init, name="qkv")(x)
        parts = jax.lax.split(qkv, (dim, dim, dim), axis=-1)
        q, k, v = (part.reshape(batch, tokens, self.num_heads, -1) for part in parts)
        if self.qk_norm:
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        if self.rotary_grid:
            q, k = rotate(q, self.rotary_grid), rotate(k, self.rotary_grid)
        if turns is not None:
            turn = turn_pairs if self.pairs else turn_halves
            q, k = turn(q, turns), turn(k, turns)
        x = attend(q, k, v, mask).reshape(batch, tokens, dim)
        return Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="proj")(x)

    def _norm(self, name):
        if self.rms:
            return rms_norm(1e-6, dtype=self.dtype, name=name)
        return layer_norm(1e-5, affine=True, dtype=self.dtype, name=name)


class MLP(nn.Module):
    """Linear, `activation`, Linear over the last axis, of width D outside and `hidden` inside."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype = jnp.float32
    kernel_init: initializers.Initializer = initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        dim = x.shape[-1]
        x = Dense(self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(x)
        x = self.activation(x)
        return Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="fc2")(x)


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x), of width D outside and `hidden` inside.

    Source: arXiv 2002.05202, equation 6, with biases.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: initializers.Initializer = initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        dim = x.shape[-1]
        x = Dense(2 * self.hidden, dtype=self.dtype, kernel_init=self.kernel_init, name="w12")(x)
        gate, value = jnp.split(x, 2, axis=-1)
        x = nn.silu(gate) * value
        return Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="w3")(x)


def layer_norm(epsilon: float, *, affine: bool, dtype=jnp.float32, name: str | None = None):
    """LayerNorm over the last axis, with float32 statistics and PyTorch's two-pass variance."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


def rms_norm(epsilon: float, *, dtype=jnp.float32, name: str | None = None):
    """RMSNorm over the last axis with a learned scale and float32 statistics (arXiv 1910.07467)."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, name=name)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) over the last axis, without biases (arXiv 2002.05202)."""

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype
    kernel_init: initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        options = dict(biased=False, dtype=self.dtype, kernel_init=self.kernel_init)
        gate, up = (Dense(self.hidden, name=name, **options)(x) for name in ("gate", "up"))
        return Dense(x.shape[-1], name="down", **options)(self.activation(gate) * up)


class OffsetRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * (offset + scale) over the last axis, in float32.

    With an offset of 1, Gemma's (arXiv 2403.08295), the scale starts at 0, so weight decay draws
    the factor towards 1; with 0 it starts at 1 (arXiv 1910.07467).
    """

    offset: float = 1.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D) in `dtype`."""
        init = initializers.constant(1.0 - self.offset)
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * (self.offset + scale.astype(jnp.float32))).astype(self.dtype)
