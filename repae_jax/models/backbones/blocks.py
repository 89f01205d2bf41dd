"""The blocks of SiT and its relatives, with adaLN-Zero, and what stands before and behind them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.models.layers import MLP, Attention, Dense, SwiGLU, layer_norm, rms_norm, tanh_gelu

zeros = initializers.zeros
normal_002 = initializers.normal(0.02)
xavier = initializers.xavier_uniform()


class TimeEmbedding(nn.Module):
    """256 sinusoidal features of t in [0, 1], then Linear-SiLU-Linear; t is not rescaled."""

    hidden_size: int
    features: int = 256
    dtype: jnp.dtype = jnp.float32
    kernel_init: initializers.Initializer = normal_002

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """(B,) -> (B, D)."""
        half = self.features // 2
        frequencies = np.exp(-np.log(1e4) * np.arange(half, dtype=np.float32) / half)
        angles = t.astype(jnp.float32)[:, None] * frequencies
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        options = dict(dtype=self.dtype, kernel_init=self.kernel_init)
        x = Dense(self.hidden_size, name="fc1", **options)(x)
        return Dense(self.hidden_size, name="fc2", **options)(nn.silu(x))


def modulate(x: jax.Array, shift: jax.Array | None, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift for tokens x (B, N, D); shift and scale are (B, 1 or N, D)."""
    scaled = x * (1 + scale)
    return scaled if shift is None else scaled + shift


def per_token(condition: jax.Array) -> jax.Array:
    """A condition of all tokens (B, D) as (B, 1, D); one of each token (B, N, D) stays."""
    return condition if condition.ndim == 3 else condition[:, None]


def block_norm(rms: bool, dtype: jnp.dtype, name: str | None = None) -> nn.Module:
    """RMSNorm with a learned scale, or LayerNorm without scale and bias; epsilon 1e-6."""
    if rms:
        return rms_norm(1e-6, dtype=dtype, name=name)
    return layer_norm(1e-6, affine=False, dtype=dtype, name=name)


class Block(nn.Module):
    """Transformer block with adaLN-Zero conditioning (DiT, arXiv 2212.09748, section 3.2).

    Attributes:
      num_heads: the heads of the attention.
      mlp_ratio: the hidden width of the MLP over D; SwiGLU takes two thirds of it.
      qk_norm: normalize queries and keys per head.
      rotary_grid: rotate queries and keys by their place in a grid of this side; 0 for none.
      swiglu: SwiGLU in place of the GELU MLP.
      rms: RMSNorm with a learned scale in place of LayerNorm.
      shift: modulate by a shift besides scale and gate.
      dtype: the type of the matrix products.
      kernel_init: the initializer of the weights of attention and MLP.
    """

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    rotary_grid: int
    swiglu: bool
    rms: bool
    shift: bool
    dtype: jnp.dtype
    kernel_init: initializers.Initializer = xavier

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """x (B, N, D), condition (B, D) or (B, N, D) -> (B, N, D).

        Without a condition, the block modulates nothing and has no weights for it. The mask is that
        of `layers.attend`.
        """
        dim = x.shape[-1]
        options = dict(dtype=self.dtype, kernel_init=self.kernel_init)
        attention = Attention(
            self.num_heads, self.qk_norm, rms=self.rms, rotary_grid=self.rotary_grid, name="attn",
            **options,
        )  # fmt: skip
        hidden = int(dim * self.mlp_ratio)
        if self.swiglu:
            mlp = SwiGLU(int(2 / 3 * hidden), name="mlp", **options)
        else:
            mlp = MLP(hidden, activation=tanh_gelu, name="mlp", **options)
        norm1, norm2 = (block_norm(self.rms, self.dtype, f"norm{i}") for i in (1, 2))
        if condition is None:
            x = x + attention(norm1(x), mask)
            return x + mlp(norm2(x))

        parts = 6 if self.shift else 4
        modulation = Dense(
            parts * dim, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="modulation"
        )(nn.silu(per_token(condition)))
        if self.shift:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        else:
            scale_a, gate_a, scale_m, gate_m = jnp.split(modulation, 4, axis=-1)
            shift_a = shift_m = None
        x = x + gate_a * attention(modulate(norm1(x), shift_a, scale_a), mask)
        return x + gate_m * mlp(modulate(norm2(x), shift_m, scale_m))


class ClassTokenEmbedding(nn.Module):
    """A linear layer and a norm with a learned scale: a noisy class token as one more token (REG).

    Attributes:
      width: D, the width of the tokens.
      rms: RMSNorm in place of LayerNorm; epsilon 1e-6.
      dtype: the type of the matrix product.
      kernel_init: the initializer of its weights.
    """

    width: int
    rms: bool
    dtype: jnp.dtype
    kernel_init: initializers.Initializer = xavier

    @nn.compact
    def __call__(self, class_token: jax.Array) -> jax.Array:
        """(B, D_c) -> (B, 1, D)."""
        linear = Dense(self.width, dtype=self.dtype, kernel_init=self.kernel_init, name="linear")
        if self.rms:
            norm = rms_norm(1e-6, dtype=self.dtype, name="norm")
        else:
            norm = layer_norm(1e-6, affine=True, dtype=self.dtype, name="norm")
        return norm(linear(class_token))[:, None]


class FinalLayer(nn.Module):
    """A modulated norm, then a linear layer from tokens to patches of the prediction.

    With `class_token_dim` the last token is the class token's, which has a layer of its own.
    Weights and biases start at 0, unless `kernel_init` is another initializer.
    """

    features: int
    rms: bool
    dtype: jnp.dtype
    class_token_dim: int = 0
    kernel_init: initializers.Initializer = zeros

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """x (B, N, D), condition (B, D) or (B, N, D) -> the patches and the class token.

        The patches are (B, N, features). With `class_token_dim` they are one fewer than the tokens,
        and the class token is (B, class_token_dim); otherwise None.
        """
        modulation = self._linear("modulation", 2 * x.shape[-1])(nn.silu(per_token(condition)))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        x = modulate(block_norm(self.rms, self.dtype, "norm")(x), shift, scale)
        linear = self._linear("linear", self.features)
        if not self.class_token_dim:
            return linear(x), None
        return linear(x[:, :-1]), self._linear("class_token", self.class_token_dim)(x[:, -1])

    def _linear(self, name, features):
        return Dense(features, dtype=self.dtype, kernel_init=self.kernel_init, name=name)
