"""The layers of DC-AE (arXiv 2410.10733): EfficientViT blocks, and changes of the resolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.models.convolution import conv
from repae_jax.models.layers import TORCH_KERNEL, Dense
from repae_jax.models.pixel_shuffle import shuffle, unshuffle
from repae_jax.models.upsample import UpsampleConv

_EPSILON = 1e-5  # of every norm
_ATTENTION_EPSILON = 1e-15
_EXPANSION = 4  # hidden channels of the feed-forward part, in units of its width


def mean_of_groups(x: jax.Array, channels: int) -> jax.Array:
    """The means of consecutive channels: (..., C) -> (..., channels)."""
    return x.reshape(*x.shape[:-1], channels, -1).mean(-1)


class ChannelNorm(nn.Module):
    """RMS norm over channels with a bias: x / sqrt(mean x^2 + 1e-5) * scale + bias, in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) in `dtype`."""
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + _EPSILON)
        return _affine(self, x).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """BatchNorm by its running statistics, "mean" and "var" (C,) of the collection "constants".

    No run changes the statistics; "scale" and "bias" are parameters.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) in `dtype`."""
        shape = x.shape[-1:]
        mean = self.variable("constants", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("constants", "var", jnp.ones, shape, jnp.float32)
        x = (x.astype(jnp.float32) - mean.value) * jax.lax.rsqrt(var.value + _EPSILON)
        return _affine(self, x).astype(self.dtype)


def _affine(module, x):
    shape = x.shape[-1:]
    x = x * module.param("scale", initializers.ones, shape, jnp.float32)
    return x + module.param("bias", initializers.zeros, shape, jnp.float32)


class ResBlock(nn.Module):
    """Convolution, activation, convolution without a bias, norm; the identity beside it."""

    batch_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        width, activate = x.shape[-1], nn.relu if self.batch_norm else nn.silu
        h = activate(conv(width, width, 3, dtype=self.dtype, name="conv1")(x))
        h = conv(width, width, 3, bias=False, dtype=self.dtype, name="conv2")(h)
        return x + _norm(self.batch_norm)(self.dtype, name="norm")(h)


def _norm(batch_norm):
    return FrozenBatchNorm if batch_norm else ChannelNorm


class LinearAttention(nn.Module):
    """Multi-scale linear attention with ReLU as its feature map (arXiv 2205.14756, section 3.1).

    The three projections form 3 C channels; each scale adds as many, which a depthwise convolution
    of its size and a 1 x 1 convolution within groups make. Each 3 * head_width consecutive
    channels of the whole are a head's query, key and value. So a single projection is no query of
    all heads, whatever diffusers' names `to_q`, `to_k`, `to_v` say.
    """

    head_width: int
    scales: tuple[int, ...]
    batch_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        width = x.shape[-1]
        heads = width // self.head_width
        inner = heads * self.head_width

        def linear(features, name):
            return Dense(
                features, biased=False, dtype=self.dtype, kernel_init=TORCH_KERNEL, name=name
            )

        def grouped(size, groups, name):
            return conv(3 * inner, 3 * inner, size, bias=False, groups=groups, dtype=self.dtype,
                        name=name)  # fmt: skip

        qkv = jnp.concatenate([linear(inner, f"part_{i}")(x) for i in range(3)], -1)
        scales = [qkv]
        for i, size in enumerate(self.scales):
            h = grouped(size, 3 * inner, f"scale_{i}_in")(qkv)
            scales.append(grouped(1, 3 * heads, f"scale_{i}_out")(h))
        h = attend_linearly(jnp.concatenate(scales, -1), self.head_width)
        h = linear(width, "proj_out")(h)
        return x + _norm(self.batch_norm)(self.dtype, name="norm")(h)


def attend_linearly(qkv: jax.Array, head_width: int) -> jax.Array:
    """sum_n v_n (k_n . q) / sum_n (k_n . q) of rectified q and k, in float32.

    Args:
      qkv: (B, H, W, heads * 3 * head_width), the query, key and value of each head in a row.
      head_width: channels of a head.

    Returns:
      (B, H, W, heads * head_width), float32.
    """
    batch, height, width, _ = qkv.shape
    qkv = qkv.astype(jnp.float32).reshape(batch, height * width, -1, 3, head_width)
    q, k, v = nn.relu(qkv[..., 0, :]), nn.relu(qkv[..., 1, :]), qkv[..., 2, :]
    values = jnp.einsum("bnhd,bnhe->bhde", k, v)
    weights = k.sum(1)  # (B, heads, head_width)
    total = jnp.einsum("bnhd,bhd->bnh", q, weights)
    out = jnp.einsum("bnhd,bhde->bnhe", q, values) / (total + _ATTENTION_EPSILON)[..., None]
    return out.reshape(batch, height, width, -1)


class GatedConv(nn.Module):
    """The feed-forward part: 1 x 1, depthwise 3 x 3, a gate, 1 x 1, norm; the identity beside."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        width, hidden = x.shape[-1], 2 * _EXPANSION * x.shape[-1]
        h = nn.silu(conv(width, hidden, 1, dtype=self.dtype, name="inverted")(x))
        h = conv(hidden, hidden, 3, groups=hidden, dtype=self.dtype, name="depth")(h)
        h, gate = jnp.split(h, 2, axis=-1)
        h = h * nn.silu(gate)
        h = conv(hidden // 2, width, 1, bias=False, dtype=self.dtype, name="point")(h)
        return x + ChannelNorm(self.dtype, name="norm")(h)


class EfficientViTBlock(nn.Module):
    """Linear attention, then the gated convolution, whose norm is always `ChannelNorm`."""

    head_width: int
    scales: tuple[int, ...]
    batch_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        attention = LinearAttention(
            self.head_width, self.scales, self.batch_norm, self.dtype, name="attn"
        )
        return GatedConv(self.dtype, name="ffn")(attention(x))


class Downsample(nn.Module):
    """Half the height and width; beside it the means of 2 x 2 pixels' channels, if `shortcut`."""

    features: int
    shuffle: bool
    dtype: jnp.dtype
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / 2, W / 2, features)."""
        width = x.shape[-1]
        if self.shuffle:
            h = unshuffle(conv(width, self.features // 4, 3, dtype=self.dtype, name="conv")(x))
        else:
            h = conv(width, self.features, 3, stride=2, dtype=self.dtype, name="conv")(x)
        return h + mean_of_groups(unshuffle(x), self.features) if self.shortcut else h


class Upsample(nn.Module):
    """Twice the height and width; beside it each channel repeated and shuffled, if `shortcut`."""

    features: int
    shuffle: bool
    dtype: jnp.dtype
    shortcut: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 2 H, 2 W, features)."""
        width = x.shape[-1]
        if self.shuffle:
            h = shuffle(conv(width, 4 * self.features, 3, dtype=self.dtype, name="conv")(x))
        else:
            h = UpsampleConv(width, self.features, self.dtype, name="conv")(x)
        if not self.shortcut:
            return h
        return h + shuffle(jnp.repeat(x, 4 * self.features // width, axis=-1))
