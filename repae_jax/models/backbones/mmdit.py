"""The MMDiT of REPA's text-to-image experiment: image and text are two streams that attend jointly.

Sources: arXiv 2403.03206, section 4 (MM-DiT); REPA (arXiv 2410.06940), `models/mmdit.py`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.backbones import transformer
from repae_jax.models.backbones.blocks import (
    FinalLayer,
    TimeEmbedding,
    block_norm,
    modulate,
    per_token,
)
from repae_jax.models.backbones.transformer import SIZES, Transformer, defaults_of
from repae_jax.models.family import Family
from repae_jax.models.layers import MLP, TORCH_KERNEL, Dense, attend, tanh_gelu
from repae_jax.models.remat import rematerialize

PRESETS = {"MMDiT-24/2": dict(hidden_size=768, depth=24, num_heads=24, patch_size=2)}


class Streams(NamedTuple):
    """The tokens of both streams."""

    context: jax.Array | None  # (B, L, D), of the text; None after the last block
    patches: jax.Array  # (B, N, D)


class Stream(nn.Module):
    """The layers of one stream in a block, before and after the joint attention, with adaLN.

    Attributes:
      width: D.
      num_heads: the heads of the attention.
      mlp_ratio: the hidden width of the MLP over D.
      keys_only: leave out the layers after the attention, which nothing would read.
      dtype: the type of the matrix products.
    """

    width: int
    num_heads: int
    mlp_ratio: float
    keys_only: bool
    dtype: jnp.dtype

    def setup(self):
        self.norm1 = block_norm(False, self.dtype)
        self.modulation = self._linear((2 if self.keys_only else 6) * self.width)
        self.qkv = self._linear(3 * self.width)
        if not self.keys_only:
            self.proj = self._linear(self.width)
            self.norm2 = block_norm(False, self.dtype)
            self.mlp = MLP(
                int(self.width * self.mlp_ratio), tanh_gelu, self.dtype, kernel_init=TORCH_KERNEL
            )

    def modulations(self, time: jax.Array) -> list[jax.Array]:
        """time (B, D) -> shift and scale, each (B, 1, D), then the four of `after`."""
        parts = self.modulation(nn.silu(per_token(time)))
        return jnp.split(parts, parts.shape[-1] // self.width, axis=-1)

    def before(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> list[jax.Array]:
        """x (B, N, D) -> queries, keys and values, each (B, N, heads, D / heads)."""
        qkv = self.qkv(modulate(self.norm1(x), shift, scale))
        parts = jnp.split(qkv, 3, axis=-1)
        return [part.reshape(*x.shape[:2], self.num_heads, -1) for part in parts]

    def after(
        self, x: jax.Array, attended: jax.Array, gate_a: jax.Array, shift: jax.Array,
        scale: jax.Array, gate_m: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """x (B, N, D), attended (B, N, heads, D / heads) -> (B, N, D)."""
        x = x + gate_a * self.proj(attended.reshape(x.shape))
        return x + gate_m * self.mlp(modulate(self.norm2(x), shift, scale))

    def _linear(self, features):
        return Dense(features, dtype=self.dtype, kernel_init=TORCH_KERNEL)


class JointBlock(nn.Module):
    """Both streams' queries attend to both streams' keys; everything else is of each stream.

    The last block's context stream gives keys and values alone, and no context comes out of it.
    """

    width: int
    num_heads: int
    mlp_ratio: float
    last: bool
    dtype: jnp.dtype

    def setup(self):
        sizes = (self.width, self.num_heads, self.mlp_ratio)
        self.context = Stream(*sizes, self.last, self.dtype)
        self.patches = Stream(*sizes, False, self.dtype)

    def __call__(self, streams: Streams, time: jax.Array) -> Streams:
        """The tokens after the block; time (B, D)."""
        of_context, of_patches = (s.modulations(time) for s in (self.context, self.patches))
        context = self.context.before(streams.context, *of_context[:2])
        patches = self.patches.before(streams.patches, *of_patches[:2])
        attended = attend(
            *(jnp.concatenate(pair, axis=1) for pair in zip(context, patches, strict=True))
        )
        length = streams.context.shape[1]
        after = self.patches.after(streams.patches, attended[:, length:], *of_patches[2:])
        if self.last:
            return Streams(None, after)
        return Streams(
            self.context.after(streams.context, attended[:, :length], *of_context[2:]), after
        )


class MMDiT(Transformer):
    """Predicts the velocity of latents by the joint attention of their patches and a text.

    It reads the tokens of the condition, all of them: in the original the padding of CLIP's text
    takes part. The time modulates both streams, and no vector of the text does. Latents have no
    other size than the position table's.

    All linear layers start as PyTorch's do, the last one too; the heads for the teachers start as
    those of other backbones. Of the fields of `Transformer`, those of `Block` except `num_heads`
    and `mlp_ratio` do not apply, and neither does `class_token_dim`.
    """

    reads = ("tokens",)

    def _patch_embedding(self):
        return Dense(self.hidden_size, dtype=self.dtype, kernel_init=TORCH_KERNEL)

    def _time_embedding(self):
        return TimeEmbedding(self.hidden_size, dtype=self.dtype, kernel_init=TORCH_KERNEL)

    def _all_blocks(self):
        block = rematerialize(JointBlock, self.remat)
        sizes = (self.hidden_size, self.num_heads, self.mlp_ratio)
        return [block(*sizes, i == self.depth - 1, self.dtype) for i in range(self.depth)]

    def _make_final_layer(self, features):
        return FinalLayer(features, False, self.dtype, kernel_init=TORCH_KERNEL)

    def _embed(self, x, t, condition):
        h = self.patch_embed(self._patchify(x)) + self.position_table.value.astype(self.dtype)
        context = getattr(self, self.conditioner.name)(condition).tokens
        return Streams(context, h), self.time_embed(t)

    def _apply_blocks(self, start, stop, h, *inputs):
        """See `Transformer`; the last block has other weights, so a loop leaves it out."""
        last = self.depth - 1
        if start < last < stop:
            h = super()._apply_blocks(start, last, h, *inputs)
            start = last
        return super()._apply_blocks(start, stop, h, *inputs)

    def _denoised(self, h):
        return h.patches


FAMILY = Family(
    MMDiT,
    options={**SIZES, **defaults_of(MMDiT, "encoder_depth", "mlp_ratio")},
    presets=PRESETS,
    check=transformer.check,
)
