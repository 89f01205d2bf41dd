"""What SiT and its relatives share: blocks with adaLN-Zero over the patches of latents, and heads.

A backbone of this kind is a subclass of `Transformer` in a file of its own, with its published
sizes and its options.
"""

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
from repae_jax.models.family import Section
from repae_jax.models.layers import (
    MLP,
    Attention,
    Dense,
    SwiGLU,
    layer_norm,
    rms_norm,
    sincos_position_table,
    tanh_gelu,
)
from repae_jax.models.projectors import MLP as MLPProjector
from repae_jax.models.projectors import Projector
from repae_jax.models.remat import rematerialize
from repae_jax.models.scan_layers import scan_blocks

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


def modulate(x: jax.Array, shift: jax.Array | None, scale: jax.Array) -> jax.Array:
    """x * (1 + scale) + shift for tokens x (B, N, D); shift and scale are (B, 1 or N, D)."""
    scaled = x * (1 + scale)
    return scaled if shift is None else scaled + shift


def per_token(condition: jax.Array) -> jax.Array:
    """A condition of all tokens (B, D) as (B, 1, D); one of each token (B, N, D) stays."""
    return condition if condition.ndim == 3 else condition[:, None]


def block_norm(rms: bool, dtype: jnp.dtype, name: str) -> nn.Module:
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
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """x (B, N, D), condition (B, D) or (B, N, D) -> (B, N, D).

        Without a condition, the block modulates nothing and has no weights for it.
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
            x = x + attention(norm1(x))
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
        x = x + gate_a * attention(modulate(norm1(x), shift_a, scale_a))
        return x + gate_m * mlp(modulate(norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    """A modulated norm, then a linear layer from tokens to patches of the prediction."""

    features: int
    rms: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x (B, N, D), condition (B, D) or (B, N, D) -> (B, N, features)."""
        modulation = Dense(
            2 * x.shape[-1], dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="modulation"
        )(nn.silu(per_token(condition)))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        x = modulate(block_norm(self.rms, self.dtype, "norm")(x), shift, scale)
        return Dense(
            self.features, dtype=self.dtype, kernel_init=zeros, bias_init=zeros, name="linear"
        )(x)


class Transformer(nn.Module):
    """Predicts from noisy latents, and projects its tokens onto those of the teachers.

    Latents are square, (B, h, h, c), and normalized. The condition's vector is added to the time
    embedding. The caller drops conditions for guidance, so the module uses no randomness.

    `remat` (one of `remat.POLICIES`) saves memory, and `scan` (the blocks as one loop) compiles
    faster; both leave the parameters and the results unchanged.

    `rotary`, `swiglu`, `rms_norm` and `shift` are the options of `Block`.

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
    rotary: bool = False
    swiglu: bool = False
    rms_norm: bool = False
    shift: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    scan: bool = False

    predicts = "velocity"

    @property
    def output_channels(self) -> int:
        """Channels of the last layer's patches."""
        return self.latent_channels

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.latent_size // self.patch_size

    def setup(self):
        self.patch_embed = self._patch_embedding()
        self.time_embed = self._time_embedding()
        # The attribute's name, here the conditioner's, is the head of its parameters' names.
        setattr(self, self.conditioner.name, self.conditioner.module(self.hidden_size, self.dtype))
        self._setup_tokens()
        self.blocks = self._all_blocks()
        self.projectors = [
            self.projector.module(dim, self.grid, self.dtype) for dim in self.teacher_dims
        ]
        features = self.patch_size**2 * self.output_channels
        self.final_layer = FinalLayer(features, self.rms_norm, self.dtype)

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """See `Backbone`."""
        h, condition = self._embed(x, t, condition)
        h = self._apply_blocks(0, self.encoder_depth, h, condition)
        tokens = self._patches(h)
        h = self._apply_blocks(self.encoder_depth, self.depth, h, condition)
        prediction = self._unpatchify(self._predict(x, t, self._patches(h), condition))
        return BackboneOutput(prediction.astype(jnp.float32), tokens, self._project(tokens))

    def project(self, x: jax.Array, t: jax.Array, condition: Arrays) -> tuple[jax.Array, ...]:
        """The projections alone: runs the first `encoder_depth` blocks and the heads."""
        h, condition = self._embed(x, t, condition)
        h = self._apply_blocks(0, self.encoder_depth, h, condition)
        return self._project(self._patches(h))

    def hidden(self, x: jax.Array, t: jax.Array, condition: Arrays) -> jax.Array:
        """The tokens after every block, averaged over positions: (depth, B, D), float32."""
        h, condition = self._embed(x, t, condition)
        pooled = []
        for i in range(self.depth):
            h = self._apply_blocks(i, i + 1, h, condition)
            pooled.append(self._patches(h).astype(jnp.float32).mean(1))
        return jnp.stack(pooled)

    def _patch_embedding(self):
        """The module from patches (B, N, p * p * c) to tokens (B, N, D)."""
        return Dense(self.hidden_size, dtype=self.dtype, kernel_init=xavier)

    def _time_embedding(self):
        """The module from times (B,) to vectors (B, D)."""
        return TimeEmbedding(self.hidden_size, dtype=self.dtype)

    def _setup_tokens(self):
        """Make what `_embed` adds to the patches."""
        self.position_table = self.variable(
            "constants",
            "position_table",
            lambda: jnp.asarray(sincos_position_table(self.hidden_size, self.grid))[None],
        )

    def _all_blocks(self):
        return self._make_blocks(self.depth, self.num_heads)

    def _make_blocks(self, depth, num_heads, **options):
        block = rematerialize(Block, self.remat)
        return [
            block(
                num_heads,
                self.mlp_ratio,
                self.qk_norm,
                self.grid if self.rotary else 0,
                self.swiglu,
                self.rms_norm,
                self.shift,
                self.dtype,
                **options,
            )
            for _ in range(depth)
        ]

    def _embed(self, x, t, condition):
        """The tokens before the first block (B, N, D), and what steers the blocks (B, D)."""
        h = self.patch_embed(self._patchify(x)) + self.position_table.value.astype(self.dtype)
        return h, self.time_embed(t) + getattr(self, self.conditioner.name)(condition).vector

    def _apply_blocks(self, start, stop, h, condition):
        """The tokens after the blocks from `start` up to `stop`."""
        blocks = self.blocks[start:stop]
        if not self.scan or self.is_initializing() or len(blocks) < 2:
            for block in blocks:
                h = block(h, condition)
            return h
        return scan_blocks(blocks, h, condition, dtype=self.dtype)

    def _patches(self, h):
        """The tokens of the patches, (B, N, D), of those that the blocks see: the first N."""
        return h[:, : self.grid**2]

    def _predict(self, x, t, tokens, condition):
        """The patches of the prediction from the tokens after the last block."""
        return self.final_layer(tokens, condition)

    def _project(self, tokens):
        return tuple(head(tokens) for head in self.projectors)

    def _patchify(self, x):
        """(B, h, w, c) -> (B, N, p * p * c), patches in row-major order."""
        batch, p = x.shape[0], self.patch_size
        x = x.reshape(batch, self.grid, p, self.grid, p, self.latent_channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, self.grid**2, -1)

    def _unpatchify(self, x):
        """(B, N, p * p * c) -> (B, h, w, c) for the channels of the output."""
        batch, p, channels = x.shape[0], self.patch_size, self.output_channels
        x = x.reshape(batch, self.grid, self.grid, p, p, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, self.latent_size, self.latent_size, channels)


# The options that a preset sets.
SIZES = dict.fromkeys(("patch_size", "hidden_size", "depth", "num_heads"), int)


def defaults_of(network: type[Transformer], *names: str) -> dict[str, Any]:
    """Options of a family and their defaults, which are those of the network's fields."""
    return {name: getattr(network, name) for name in names}


def preset_of(found: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The preset with these sizes; None for others."""
    for name, preset in presets.items():
        if all(preset[size] == found[size] for size in SIZES):
            return name
    return None


_LARGEST_TABLE = 2**26  # values of the position table, 256 MiB


def check(network: Transformer, section: Section, path: str) -> None:
    """Raise UserError, naming the key and the way out, for sizes that do not fit together."""
    patch, width, side = network.patch_size, network.hidden_size, network.latent_size
    if "vector" not in network.conditioner.gives:
        raise UserError(
            f"{path}.family is {section['family']!r}, which needs the vector of a condition, but a "
            f"{type(network.conditioner).__name__} gives none: choose another config.condition"
        )
    if side % patch:
        raise UserError(
            f"the backbone's patch size {patch} does not divide the latent of {side} x {side}: "
            "use a patch size that does, or another resolution"
        )
    if not 1 <= network.encoder_depth <= network.depth:
        raise UserError(
            f"{path}.encoder_depth is {network.encoder_depth}: it must lie between 1 and the "
            f"backbone's depth {network.depth}"
        )
    if width % network.num_heads or width % 4:
        raise UserError(
            f"{path}.hidden_size is {width}: it must be divisible by the "
            f"{network.num_heads} heads and by 4"
        )
    if network.rotary:
        way_out = f", or set {path}.rotary=False" if "rotary" in section else ""
        check_rotary(width, network.num_heads, path, "num_heads", way_out)
    if network.grid**2 * width > _LARGEST_TABLE:
        raise UserError(
            f"the backbone would see {network.grid} x {network.grid} tokens of width {width}, "
            "whose table of positions no memory holds: lower --config.data.resolution, or raise "
            "--config.backbone.patch_size"
        )


def check_rotary(width: int, heads: int, path: str, key: str, way_out: str = "") -> None:
    """Raise UserError, naming the key of the heads, for heads that have no rotary positions."""
    if width // heads % 4:
        raise UserError(
            f"{path}: heads of width {width // heads} ({width} / {heads}) have no rotary "
            f"positions, which take the features of a head in fours: change {path}.{key}{way_out}"
        )
