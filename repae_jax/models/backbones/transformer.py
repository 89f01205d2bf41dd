"""What SiT and its relatives share: blocks with adaLN-Zero over the patches of latents, and heads.

A backbone of this kind is a subclass of `Transformer` in a file of its own, with its published
sizes and its options.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.backbones.blocks import (
    Block,
    ClassTokenEmbedding,
    FinalLayer,
    TimeEmbedding,
    xavier,
)
from repae_jax.models.conditioning.base import Arrays, Conditioner
from repae_jax.models.family import Section
from repae_jax.models.layers import Dense, sincos_position_table
from repae_jax.models.projectors import MLP as MLPProjector
from repae_jax.models.projectors import Conv as ConvProjector
from repae_jax.models.projectors import Projector
from repae_jax.models.remat import rematerialize
from repae_jax.models.scan_layers import scan_blocks


class Transformer(nn.Module):
    """Predicts from noisy latents, and projects its tokens onto those of the teachers.

    Latents are square, (B, h, h, c), and normalized. The condition's vector is added to the time
    embedding. The caller drops conditions for guidance, so the module uses no randomness.

    `remat` (one of `remat.POLICIES`) saves memory, and `scan` (the blocks as one loop) compiles
    faster; both leave the parameters and the results unchanged.

    `rotary`, `swiglu`, `rms_norm` and `shift` are the options of `Block`.

    With `class_token_dim`, the module also denoises a class token of this width (REG, arXiv
    2507.01467): it is one more token behind the patches, without a position, and it is projected
    like them.

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
    class_token_dim: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    scan: bool = False

    predicts = "velocity"
    reads = ("vector",)  # the fields of a `Condition` that the network reads

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
        if self.class_token_dim:
            self.class_token_embed = self._class_token_embedding(self.hidden_size)
        self.blocks = self._all_blocks()
        self.projectors = [
            self.projector.module(dim, self.grid, self.dtype) for dim in self.teacher_dims
        ]
        self.final_layer = self._make_final_layer(self.patch_size**2 * self.output_channels)

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Arrays, class_token: jax.Array | None = None
    ) -> BackboneOutput:
        """See `Backbone`."""
        h, condition = self._sequence(x, t, condition, class_token)
        h = self._apply_blocks(0, self.encoder_depth, h, condition)
        tokens = self._denoised(h)
        h = self._apply_blocks(self.encoder_depth, self.depth, h, condition)
        patches, class_token = self._predict(x, t, self._denoised(h), condition, class_token)
        prediction = self._unpatchify(patches).astype(jnp.float32)
        extra = {} if class_token is None else {"class_token": class_token.astype(jnp.float32)}
        return BackboneOutput(prediction, tokens, self._project(tokens), extra)

    def project(
        self, x: jax.Array, t: jax.Array, condition: Arrays, class_token: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The projections alone: runs the first `encoder_depth` blocks and the heads."""
        h, condition = self._sequence(x, t, condition, class_token)
        h = self._apply_blocks(0, self.encoder_depth, h, condition)
        return self._project(self._denoised(h))

    def hidden(
        self, x: jax.Array, t: jax.Array, condition: Arrays, class_token: jax.Array | None = None
    ) -> jax.Array:
        """The patches' tokens after every block, averaged over them: (depth, B, D), float32."""
        h, condition = self._sequence(x, t, condition, class_token)
        pooled = []
        for i in range(self.depth):
            h = self._apply_blocks(i, i + 1, h, condition)
            pooled.append(self._denoised(h)[:, : self.grid**2].astype(jnp.float32).mean(1))
        return jnp.stack(pooled)

    def _patch_embedding(self):
        """The module from patches (B, N, p * p * c) to tokens (B, N, D)."""
        return Dense(self.hidden_size, dtype=self.dtype, kernel_init=xavier)

    def _time_embedding(self):
        """The module from times (B,) to vectors (B, D)."""
        return TimeEmbedding(self.hidden_size, dtype=self.dtype)

    def _class_token_embedding(self, width):
        """The module from class tokens (B, D_c) to tokens (B, 1, width)."""
        return ClassTokenEmbedding(width, self.rms_norm, self.dtype)

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

    def _make_final_layer(self, features):
        """The module from tokens (B, N, D) to patches (B, N, features), and the class token."""
        return FinalLayer(features, self.rms_norm, self.dtype, self.class_token_dim)

    def _embed(self, x, t, condition):
        """The tokens before the first block (B, N, D), and what steers the blocks (B, D)."""
        h = self.patch_embed(self._patchify(x)) + self.position_table.value.astype(self.dtype)
        return h, self.time_embed(t) + getattr(self, self.conditioner.name)(condition).vector

    def _sequence(self, x, t, condition, class_token):
        """The result of `_embed`, with the class token behind the patches."""
        h, condition = self._embed(x, t, condition)
        if self.class_token_dim:
            n = self.grid**2
            h = jnp.concatenate([h[:, :n], self.class_token_embed(class_token), h[:, n:]], axis=1)
        return h, condition

    def _apply_blocks(self, start, stop, h, *inputs):
        """The tokens after the blocks from `start` up to `stop`, each of them `block(h, *inputs)`.

        A subclass may steer its blocks by other inputs than the one that `_embed` returns.
        """
        blocks = self.blocks[start:stop]
        if not self.scan or self.is_initializing() or len(blocks) < 2:
            for block in blocks:
                h = block(h, *inputs)
            return h
        return scan_blocks(blocks, h, *inputs, dtype=self.dtype)

    def _denoised(self, h):
        """The tokens of the patches and of the class token, the first that the blocks see."""
        return h[:, : self.grid**2 + bool(self.class_token_dim)]

    def _predict(self, x, t, tokens, condition, class_token):
        """The patches and the class token that are predicted, from the tokens after all blocks."""
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
    check_inputs(network, section, path)
    width = network.hidden_size
    if width % network.num_heads or width % 4:
        raise UserError(
            f"{path}.hidden_size is {width}: it must be divisible by the "
            f"{network.num_heads} heads and by 4"
        )
    if network.rotary:
        way_out = f", or set {path}.rotary=False" if "rotary" in section else ""
        check_rotary(width, network.num_heads, path, "num_heads", way_out)
    if network.class_token_dim and isinstance(network.projector, ConvProjector):
        raise UserError(
            f"{path}.class_token_dim is {network.class_token_dim}, but a class token has no place "
            "in the grid of config.projector.family 'conv': use 'mlp'"
        )
    if network.grid**2 * width > _LARGEST_TABLE:
        raise UserError(
            f"the backbone would see {network.grid} x {network.grid} tokens of width {width}, "
            "whose table of positions no memory holds: lower --config.data.resolution, or raise "
            "--config.backbone.patch_size"
        )


def check_inputs(network: Transformer, section: Section, path: str) -> None:
    """Raise UserError for a condition, patches or an aligned block that do not fit the network."""
    patch, side = network.patch_size, network.latent_size
    reads = network.reads
    if not set(reads) <= set(network.conditioner.gives):
        raise UserError(
            f"{path}.family is {section['family']!r}, which needs the {' and '.join(reads)} of a "
            f"condition, but a {type(network.conditioner).__name__} gives none: choose another "
            "config.condition"
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


def check_least_time(network: Transformer, path: str) -> None:
    """Raise UserError for a backbone that would divide by a least time of 0, or above 1."""
    if not 0.0 < network.least_time <= 1.0:
        raise UserError(f"{path}.least_time is {network.least_time}: give a time in (0, 1]")


def check_rotary(width: int, heads: int, path: str, key: str, way_out: str = "") -> None:
    """Raise UserError, naming the key of the heads, for heads that have no rotary positions."""
    if width // heads % 4:
        raise UserError(
            f"{path}: heads of width {width // heads} ({width} / {heads}) have no rotary "
            f"positions, which take the features of a head in fours: change {path}.{key}{way_out}"
        )
