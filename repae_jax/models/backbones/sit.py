"""SiT, the scalable interpolant transformer (arXiv 2401.08740), with heads for alignment (REPA)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.conditioning.base import Arrays, Conditioner
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import (
    MLP,
    Attention,
    Dense,
    layer_norm,
    sincos_position_table,
    tanh_gelu,
)
from repae_jax.models.projectors import MLP as MLPProjector
from repae_jax.models.projectors import Projector
from repae_jax.models.remat import rematerialize
from repae_jax.models.scan_layers import scan_blocks

# name -> (hidden_size, depth, num_heads); SiT paper (arXiv 2401.08740), table 1.
SIT_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCH_SIZES = (1, 2, 4, 8)
SIT_CONFIGS = {
    f"SiT-{size}/{patch}": dict(hidden_size=hidden, depth=depth, num_heads=heads, patch_size=patch)
    for size, (hidden, depth, heads) in SIT_SIZES.items()
    for patch in PATCH_SIZES
}

zeros = initializers.zeros
normal_002 = initializers.normal(0.02)
xavier = initializers.xavier_uniform()


class TimeEmbedding(nn.Module):
    """256 sinusoidal features of t in [0, 1], then Linear-SiLU-Linear; t is not rescaled."""

    hidden_size: int
    features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """(B,) -> (B, D)."""
        half = self.features // 2
        frequencies = np.exp(-np.log(1e4) * np.arange(half, dtype=np.float32) / half)
        angles = t.astype(jnp.float32)[:, None] * frequencies
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        x = Dense(self.hidden_size, dtype=self.dtype, kernel_init=normal_002, name="fc1")(x)
        x = nn.silu(x)
        return Dense(self.hidden_size, dtype=self.dtype, kernel_init=normal_002, name="fc2")(x)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift for tokens x (B, N, D); shift and scale are (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SiTBlock(nn.Module):
    """Transformer block with adaLN-Zero conditioning (DiT, arXiv 2212.09748, section 3.2)."""

    num_heads: int
    mlp_ratio: float
    qk_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x (B, N, D), condition (B, D) -> (B, N, D)."""
        dim = x.shape[-1]
        modulation = Dense(
            6 * dim, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="modulation"
        )(nn.silu(condition))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        h = layer_norm(1e-6, affine=False, dtype=self.dtype, name="norm1")(x)
        attention = Attention(self.num_heads, self.qk_norm, self.dtype, name="attn")
        x = x + gate_a[:, None] * attention(modulate(h, shift_a, scale_a))

        h = layer_norm(1e-6, affine=False, dtype=self.dtype, name="norm2")(x)
        mlp = MLP(int(dim * self.mlp_ratio), activation=tanh_gelu, dtype=self.dtype, name="mlp")
        return x + gate_m[:, None] * mlp(modulate(h, shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated LayerNorm, then a linear layer from tokens to patches of velocity."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x (B, N, D), condition (B, D) -> (B, N, features)."""
        modulation = Dense(
            2 * x.shape[-1], dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="modulation"
        )(nn.silu(condition))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        x = modulate(layer_norm(1e-6, affine=False, dtype=self.dtype, name="norm")(x), shift, scale)
        return Dense(
            self.features, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="linear"
        )(x)


class SiT(nn.Module):
    """Predicts the velocity of latents, and projects its tokens onto those of the teachers.

    Latents are square, (B, h, h, c), and normalized. The condition's vector is added to the time
    embedding. The caller drops conditions for guidance, so the module uses no randomness.

    `remat` (one of `remat.POLICIES`) saves memory, and `scan` (the blocks as one loop) compiles
    faster; both leave the parameters and the results unchanged.

    Collections: "params", and "constants" with the fixed position table (1, N, D), which
    checkpoints carry and training leaves unchanged.
    """

    latent_size: int
    latent_channels: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    conditioner: Conditioner
    encoder_depth: int = 8
    teacher_dims: tuple[int, ...] = ()
    projector: Projector = MLPProjector()
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    scan: bool = False

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.latent_size // self.patch_size

    def setup(self):
        def dense(features, kernel_init):
            return Dense(features, dtype=self.dtype, kernel_init=kernel_init)

        self.patch_embed = dense(self.hidden_size, xavier)
        self.time_embed = TimeEmbedding(self.hidden_size, dtype=self.dtype)
        # The attribute's name, here the conditioner's, is the head of its parameters' names.
        setattr(self, self.conditioner.name, self.conditioner.module(self.hidden_size, self.dtype))
        self.position_table = self.variable(
            "constants",
            "position_table",
            lambda: jnp.asarray(sincos_position_table(self.hidden_size, self.grid))[None],
        )
        block = rematerialize(SiTBlock, self.remat)
        self.blocks = [
            block(self.num_heads, self.mlp_ratio, self.qk_norm, self.dtype)
            for _ in range(self.depth)
        ]
        self.projectors = [
            self.projector.module(dim, self.grid, self.dtype) for dim in self.teacher_dims
        ]
        features = self.patch_size**2 * self.latent_channels
        self.final_layer = FinalLayer(features, self.dtype)

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """See `Backbone`."""
        h, condition = self._embed(x, t, condition)
        tokens = self._encode(h, condition)
        h = self._apply_blocks(self.blocks[self.encoder_depth :], tokens, condition)
        velocity = self._unpatchify(self.final_layer(h, condition)).astype(jnp.float32)
        return BackboneOutput(velocity, tokens, self._project(tokens))

    def project(self, x: jax.Array, t: jax.Array, condition: Arrays) -> tuple[jax.Array, ...]:
        """The projections alone: runs the first `encoder_depth` blocks and the heads."""
        return self._project(self._encode(*self._embed(x, t, condition)))

    def hidden(self, x: jax.Array, t: jax.Array, condition: Arrays) -> jax.Array:
        """The tokens after every block, averaged over positions: (depth, B, D), float32."""
        h, condition = self._embed(x, t, condition)
        pooled = []
        for block in self.blocks:
            h = block(h, condition)
            pooled.append(h.astype(jnp.float32).mean(1))
        return jnp.stack(pooled)

    def _embed(self, x, t, condition):
        h = self.patch_embed(self._patchify(x)) + self.position_table.value.astype(self.dtype)
        return h, self.time_embed(t) + getattr(self, self.conditioner.name)(condition).vector

    def _encode(self, h, condition):
        return self._apply_blocks(self.blocks[: self.encoder_depth], h, condition)

    def _apply_blocks(self, blocks, h, condition):
        if not self.scan or self.is_initializing() or len(blocks) < 2:
            for block in blocks:
                h = block(h, condition)
            return h
        return scan_blocks(blocks, h, condition, dtype=self.dtype)

    def _project(self, tokens):
        return tuple(head(tokens) for head in self.projectors)

    def _patchify(self, x):
        """(B, h, w, c) -> (B, N, p * p * c), patches in row-major order."""
        batch, p = x.shape[0], self.patch_size
        x = x.reshape(batch, self.grid, p, self.grid, p, self.latent_channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, self.grid**2, -1)

    def _unpatchify(self, x):
        """The inverse of `_patchify`."""
        batch, p = x.shape[0], self.patch_size
        x = x.reshape(batch, self.grid, self.grid, p, p, self.latent_channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(
            batch, self.latent_size, self.latent_size, self.latent_channels
        )


_LARGEST_TABLE = 2**26  # values of the position table, 256 MiB


def check(sit: SiT, section: Section, path: str) -> None:
    """Raise UserError, naming the key and the way out, for sizes that do not fit together."""
    patch, width = sit.patch_size, sit.hidden_size
    if "vector" not in sit.conditioner.gives:
        raise UserError(
            f"{path}.family is 'sit', which needs the vector of a condition, but a "
            f"{type(sit.conditioner).__name__} gives none: choose another config.condition"
        )
    if sit.latent_size % patch:
        raise UserError(
            f"the backbone's patch size {patch} does not divide the latent of {sit.latent_size} x "
            f"{sit.latent_size}: use a patch size that does, or another resolution"
        )
    if not 1 <= sit.encoder_depth <= sit.depth:
        raise UserError(
            f"{path}.encoder_depth is {sit.encoder_depth}: it must lie between 1 and the "
            f"backbone's depth {sit.depth}"
        )
    if width % sit.num_heads or width % 4:
        raise UserError(
            f"{path}.hidden_size is {width}: it must be divisible by the "
            f"{sit.num_heads} heads and by 4"
        )
    if sit.grid**2 * width > _LARGEST_TABLE:
        raise UserError(
            f"the backbone would see {sit.grid} x {sit.grid} tokens of width {width}, whose table "
            "of positions no memory holds: lower --config.data.resolution, or raise "
            "--config.backbone.patch_size"
        )


def describe(d: Mapping[str, Any]) -> str:
    """A SiT's dimensions in words.

    Args:
      d: the fields of `SiT` and of its conditioner; num_heads is None where it is unknown.
    """
    shape = {key: d[key] for key in ("hidden_size", "depth", "num_heads", "patch_size")}
    name = next((name for name, preset in SIT_CONFIGS.items() if preset == shape), "own size")
    heads = f"{d['num_heads']} heads" if d["num_heads"] else "unknown number of heads"
    teachers = ", ".join(map(str, d["teacher_dims"])) or "none"
    labels = d["num_classes"] + int(d.get("null_class", False))
    return (
        f"{name}: width {d['hidden_size']}, depth {d['depth']}, {heads}, patch "
        f"{d['patch_size']}, latents {d['latent_size']} x {d['latent_size']} x "
        f"{d['latent_channels']}, {labels} rows of labels, teachers' widths {teachers}"
    )


FAMILY = Family(
    SiT,
    options=dict(
        patch_size=int,
        hidden_size=int,
        depth=int,
        num_heads=int,
        **{name: getattr(SiT, name) for name in ("encoder_depth", "mlp_ratio", "qk_norm")},
    ),
    presets=SIT_CONFIGS,
    check=check,
    describe=lambda sit: describe(vars(sit) | vars(sit.conditioner)),
)
