"""The text-to-image DiT of fuse-dit (REPA-E for text-to-image): text gives extra keys and values.

Source: the class `DiT` of github.com/End2End-Diffusion/fuse-dit, a fork of the code of arXiv
2505.10046, with self-attention, a fixed position table, q/k norms and adaLN-Zero, as its `e2e-vae`
configurations have it. The class `FuseDiT` there is another model, which runs through the layers
of a language model.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.backbones.blocks import modulate, per_token, xavier, zeros
from repae_jax.models.backbones.transformer import SIZES, Transformer, check_inputs, defaults_of
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import (
    Dense,
    GatedMLP,
    OffsetRMSNorm,
    attend,
    sincos_position_table,
    tanh_gelu,
)
from repae_jax.models.remat import rematerialize

TABLE_GRID = 64  # rows and columns of the position table
_BASE_SIZE = 32  # latents of this size span the coordinates of a whole grid, see `_setup_tokens`

PRESETS = {
    "FuseDiT-3B/2": dict(
        hidden_size=2048, depth=30, num_heads=16, kv_heads=4, head_width=128, mlp_width=8192,
        patch_size=2,
    ),
}  # fmt: skip


class BlockInputs(NamedTuple):
    """What steers the blocks, equal for all of them."""

    time: jax.Array  # (B, D), the embedding of the time
    text: jax.Array  # (B, L, D), the embedded states of the text encoder
    mask: jax.Array  # (B, 1, 1, L + N) bool, False for padding among the keys


class TextAttention(nn.Module):
    """Attention from image tokens to text tokens and image tokens, with grouped queries.

    Queries and keys are normalized per head, the keys of both kinds by the same norm. Query head j
    reads the head j // (num_heads / kv_heads) of keys and values (arXiv 2305.13245). The linear
    layers have no bias.

    Attributes:
      num_heads: heads of the queries.
      kv_heads: heads of the keys and values, which divide `num_heads`.
      head_width: features of a head.
      dtype: the type of the matrix products.
    """

    num_heads: int
    kv_heads: int
    head_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array) -> jax.Array:
        """x (B, N, D), text (B, L, D), mask as in `attend` -> (B, N, D)."""
        batch, _, dim = x.shape

        def heads(name, inputs, count):
            features = count * self.head_width
            return self._linear(name, features)(inputs).reshape(batch, -1, count, self.head_width)

        q_norm, k_norm = (OffsetRMSNorm(dtype=self.dtype, name=f"{n}_norm") for n in "qk")
        q = q_norm(heads("q", x, self.num_heads))
        keys = heads("text_k", text, self.kv_heads), heads("k", x, self.kv_heads)
        values = heads("text_v", text, self.kv_heads), heads("v", x, self.kv_heads)
        k, v = (jnp.concatenate(pair, axis=1) for pair in (keys, values))
        out = attend(q, k_norm(k), v, mask)
        return self._linear("proj", dim)(out.reshape(batch, -1, self.num_heads * self.head_width))

    def _linear(self, name, features):
        return Dense(features, biased=False, dtype=self.dtype, kernel_init=xavier, name=name)


class TextBlock(nn.Module):
    """A block with adaLN-Zero, whose norms keep a learned scale beside the modulation."""

    num_heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, inputs: BlockInputs) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        modulation = _zero_dense(6 * x.shape[-1], self.dtype, "modulation")
        parts = jnp.split(modulation(nn.silu(per_token(inputs.time))), 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        norm1, norm2 = (OffsetRMSNorm(dtype=self.dtype, name=f"norm{i}") for i in (1, 2))
        attention = TextAttention(
            self.num_heads, self.kv_heads, self.head_width, self.dtype, name="attn"
        )
        h = modulate(norm1(x), shift_a, scale_a)
        x = x + gate_a * attention(h, inputs.text, inputs.mask)
        mlp = GatedMLP(self.mlp_width, tanh_gelu, self.dtype, xavier, name="mlp")
        return x + gate_m * mlp(modulate(norm2(x), shift_m, scale_m))


class ScaleFirstFinalLayer(nn.Module):
    """A modulated norm and a linear layer; the modulation gives the scale before the shift."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """x (B, N, D), time (B, D) -> (B, N, features)."""
        modulation = _zero_dense(2 * x.shape[-1], self.dtype, "modulation")
        scale, shift = jnp.split(modulation(nn.silu(per_token(time))), 2, axis=-1)
        x = modulate(OffsetRMSNorm(dtype=self.dtype, name="norm")(x), shift, scale)
        return _zero_dense(self.features, self.dtype, "linear")(x)


def _zero_dense(features, dtype, name):
    return Dense(features, dtype=dtype, kernel_init=zeros, bias_init=zeros, name=name)


class FuseDiT(Transformer):
    """A DiT on the patches of latents; every block attends to text that no block changes.

    It reads the tokens and the mask of the condition. Text has no position here, so its order is
    known from the encoder's states alone. The time t = 1 of pure noise is 1000 inside.

    The position table, (1, 64 * 64, D) in "constants", is for 64 x 64 tokens, and smaller grids
    take its center. Its coordinates advance by 16/64 per token with patches of 2, so 16 x 16 tokens
    have the coordinates 6, 6.25, ..., 9.75. Of 4 x 4 tokens, neighbors then have nearly one
    position (cosine 0.999); `position_step` sets another distance.

    Attributes:
      kv_heads: heads of keys and values, which divide `num_heads`.
      head_width: width of a head.
      mlp_width: width inside the gated MLP.
      position_step: distance of neighboring tokens in the position table; 0: the published one.

    Heads of queries times their width need not be D. Of the fields of `Transformer`, those of
    `Block` and `class_token_dim` do not apply.
    """

    kv_heads: int = 4
    head_width: int = 128
    mlp_width: int = 8192
    position_step: float = 0.0

    reads = ("tokens", "mask")

    def _setup_tokens(self):
        def table():
            step = self.position_step or _BASE_SIZE // self.patch_size / TABLE_GRID
            return jnp.asarray(sincos_position_table(self.hidden_size, TABLE_GRID, step))[None]

        self.position_table = self.variable("constants", "position_table", table)

    def _all_blocks(self):
        block = rematerialize(TextBlock, self.remat)
        sizes = (self.num_heads, self.kv_heads, self.head_width, self.mlp_width)
        return [block(*sizes, self.dtype) for _ in range(self.depth)]

    def _make_final_layer(self, features):
        return ScaleFirstFinalLayer(features, self.dtype)

    def _embed(self, x, t, condition):
        h = self.patch_embed(self._patchify(x)) + self._positions().astype(self.dtype)
        text = getattr(self, self.conditioner.name)(condition)
        mask = jnp.pad(text.mask, ((0, 0), (0, self.grid**2)), constant_values=True)
        return h, BlockInputs(self.time_embed(1000.0 * t), text.tokens, mask[:, None, None])

    def _positions(self):
        """The center of the table, (N, D)."""
        first = (TABLE_GRID - self.grid) // 2
        table = self.position_table.value.reshape(TABLE_GRID, TABLE_GRID, -1)
        taken = slice(first, first + self.grid)
        return table[taken, taken].reshape(self.grid**2, -1)

    def _predict(self, x, t, tokens, condition, class_token):
        return self.final_layer(tokens, condition.time), None


def check(network: FuseDiT, section: Section, path: str) -> None:
    """Raise UserError, naming the key and the way out, for sizes that do not fit together."""
    check_inputs(network, section, path)
    if network.hidden_size % 4:
        raise UserError(f"{path}.hidden_size is {network.hidden_size}: it must be divisible by 4")
    if min(network.kv_heads, network.head_width, network.mlp_width) < 1:
        raise UserError(
            f"{path} has kv_heads {network.kv_heads}, head_width {network.head_width} and "
            f"mlp_width {network.mlp_width}: give 1 or more of each"
        )
    if network.num_heads % network.kv_heads:
        raise UserError(
            f"{path}.num_heads is {network.num_heads}: it must be divisible by the "
            f"{network.kv_heads} heads of keys and values of {path}.kv_heads"
        )
    if not 0 <= network.position_step <= 1000:
        raise UserError(
            f"{path}.position_step is {network.position_step}: give 0 (the published distance) to "
            "1000"
        )
    if network.grid > TABLE_GRID:
        raise UserError(
            f"the backbone would see {network.grid} x {network.grid} tokens, and its table of "
            f"positions has {TABLE_GRID} x {TABLE_GRID}: lower --config.data.resolution, or raise "
            f"--{path}.patch_size"
        )


FAMILY = Family(
    FuseDiT,
    options={
        **SIZES,
        **dict.fromkeys(("kv_heads", "head_width", "mlp_width"), int),
        **defaults_of(FuseDiT, "encoder_depth", "position_step"),
    },
    presets=PRESETS,
    check=check,
)
