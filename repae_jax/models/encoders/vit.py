"""The vision transformer: published teachers, one preset each, and small teachers trained here."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.convnet import ConvLevel
from repae_jax.models.encoders.base import ViTTokens
from repae_jax.models.encoders.preprocessing import (
    RESIZING_KINDS,
    TEACHER_KINDS,
    TOKEN_PIXELS,
    preprocess,
    teacher_side,
)
from repae_jax.models.encoders.vit_presets import VIT_CONFIGS
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import (
    MLP,
    Attention,
    Dense,
    SwiGLU,
    gelu,
    layer_norm,
    quick_gelu,
    tanh_gelu,
)
from repae_jax.models.resize import resize_bicubic, resize_bilinear
from repae_jax.models.rotary import grid_periods, grid_turns, pair_turns
from repae_jax.models.scan_layers import scan_blocks

# The nonlinearity of an MLP.
ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "tanh_gelu": tanh_gelu}

# How a table of positions is resampled to another grid.
TABLE_FILTERS = {
    "antialias": functools.partial(resize_bicubic, antialias=True),  # a = -0.5
    "bicubic": resize_bicubic,  # a = -0.75
    "bilinear": resize_bilinear,
}

_INIT = initializers.truncated_normal(0.02)


def create_vit(name: str, **overrides) -> "ViT":
    """The ViT `name` of `VIT_CONFIGS`; `overrides` are fields of `ViT`.

    Raises:
      UserError: an unknown name.
    """
    if name not in VIT_CONFIGS:
        raise UserError(f"unknown ViT {name!r}; choose one of {', '.join(sorted(VIT_CONFIGS))}")
    return ViT(**{**VIT_CONFIGS[name], **overrides})


def swiglu_width(hidden: int) -> int:
    """The inner width of DINOv2-g's SwiGLU: two thirds of `hidden`, up to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class LayerScale(nn.Module):
    """A learned factor per feature, initially `init` (CaiT, arXiv 2103.17239, section 2)."""

    init: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D), float32."""
        return x * self.param("scale", initializers.constant(self.init), (x.shape[-1],))


class ViTBlock(nn.Module):
    """Pre-norm transformer block with optional LayerScale on both branches."""

    num_heads: int
    hidden: int
    swiglu: bool
    activation: str
    layer_scale: float | None
    norm_epsilon: float
    dtype: jnp.dtype
    pairs: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, turns: jax.Array | None = None
    ) -> jax.Array:
        """(B, N, D) -> (B, N, D), with the mask of `layers.attend`.

        `turns` are the angles of `rotary.turn_halves`, with `pairs` of `rotary.turn_pairs`.
        """
        settings = {"dtype": self.dtype, "kernel_init": _INIT}
        attention = Attention(self.num_heads, pairs=self.pairs, **settings, name="attn")
        if self.swiglu:
            mlp = SwiGLU(swiglu_width(self.hidden), **settings, name="mlp")
        else:
            mlp = MLP(self.hidden, ACTIVATIONS[self.activation], **settings, name="mlp")
        branches = (functools.partial(attention, mask=mask, turns=turns), mlp)
        for i, branch in enumerate(branches, start=1):
            norm = layer_norm(self.norm_epsilon, affine=True, dtype=self.dtype, name=f"norm{i}")
            y = branch(norm(x))
            x = x + (
                y if self.layer_scale is None else LayerScale(self.layer_scale, name=f"ls{i}")(y)
            )
        return x


class ViT(nn.Module):
    """Vision transformer (ViT, arXiv 2010.11929), with options for its published descendants.

    The defaults are those of DINOv2 (arXiv 2304.07193; with registers arXiv 2309.16588). The other
    families are DINO (2104.14294), MoCo v3 (2104.02057), MAE (2111.06377), I-JEPA (2301.08243),
    CLIP (2103.00020), SigLIP (2303.15343), DINOv3 (2508.10104) and PE (2504.13181). Norms, softmax,
    the residual stream and the returned tokens are float32; the matrix products run in `dtype`.

    Attributes:
      patch_size: side of a patch, pixels.
      native_grid: side of the square grid of `position_table`, patches.
      dim: width D.
      depth: blocks.
      num_heads: attention heads.
      mlp_ratio: hidden width of the feed-forward network over D (SwiGLU takes 2/3 of it).
      swiglu: SwiGLU instead of the GELU MLP.
      activation: of the MLP, one of `ACTIVATIONS`: "gelu" is exact, "quick_gelu" CLIP's.
      rope: rotary positions of the patch tokens: "dinov3" in place of the table, with periods that
        are constants, which a file may bring; "pe" beside the table; "" for none.
      layer_scale: initial LayerScale factor; None for none.
      num_registers: register tokens, inserted after the class token, without positions.
      class_token: whether a class token precedes all other tokens.
      class_position: whether the table's first entry belongs to the class token, if there is one.
      patch_bias: whether the patch embedding has a bias.
      pre_norm: LayerNorm before the first block.
      final_norm: LayerNorm after the last block.
      final_affine: whether that norm has a scale and a bias (RAE drops them).
      averaged: blocks, counted from 0 and increasing. The patch tokens are then the average of
        theirs, each after the final norm, plus the mean over tokens of the last of them (RAEv2,
        arXiv 2605.18324); (): those of the last block.
      stem: widths of convolutional levels before the patch embedding, which then embeds their
        features in place of pixels (arXiv 2010.11929, section 3.1, "hybrid"). Each level halves
        the image, so patch_size must be a multiple of 2 ** len(stem). Published weights have no
        stem; small ViTs that are trained here learn shapes much sooner with one.
      norm_epsilon: the epsilon of every LayerNorm.
      table_filter: how the table is resampled to another grid, one of `TABLE_FILTERS`: "antialias"
        is bicubic with antialias, as in the REPA-E code and DINOv2 with registers; "bicubic"
        without, as in transformers' Dinov2Model; "bilinear" PE's.
      preprocessing: the kind of preprocessing in `prepare`, one of `TEACHER_KINDS`.
      token_pixels: pixels along a side of the image for each token, for the kinds that resize.
      family: the publisher of the weights, which decides the names in files (interop/vit.py).
      dtype: the type of the matrix products.
      scan: runs the blocks as one loop, which compiles faster; parameters and results are the same.
    """

    patch_size: int
    native_grid: int
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    swiglu: bool = False
    activation: str = "gelu"
    rope: str = ""
    layer_scale: float | None = 1.0
    num_registers: int = 0
    class_token: bool = True
    class_position: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    final_affine: bool = True
    averaged: tuple[int, ...] = ()
    stem: tuple[int, ...] = ()
    norm_epsilon: float = 1e-6
    table_filter: str = "antialias"
    preprocessing: str = "dinov2"
    token_pixels: int = TOKEN_PIXELS
    family: str = "dinov2"
    dtype: jnp.dtype = jnp.float32
    scan: bool = False

    @nn.nowrap
    def grid(self, resolution: int) -> int:
        """Tokens along a side for squares of `resolution` pixels before `prepare`.

        Raises:
          UserError: the preprocessing refuses the resolution, or the patches do not divide its
            result.
        """
        side = teacher_side(resolution, self.preprocessing, self.token_pixels)
        if side % self.patch_size:
            raise UserError(f"patch size {self.patch_size} does not divide {side} pixels")
        return side // self.patch_size

    @nn.nowrap
    def prepare(self, images: jax.Array) -> jax.Array:
        """uint8 RGB images (B, H, W, 3) -> the ViT's input, see `preprocess`."""
        return preprocess(images, self.preprocessing, self.token_pixels)

    @nn.compact
    def __call__(self, images: jax.Array) -> ViTTokens:
        """Preprocessed images (B, H, W, C) -> tokens of the (H / patch) x (W / patch) grid.

        With `final_norm` the tokens are those after the final LayerNorm.

        Raises:
          UserError: a side is not a multiple of the patch size.
        """
        patches, grid = self._patches(images)
        embed = Dense(
            self.dim,
            biased=self.patch_bias,
            dtype=self.dtype,
            kernel_init=_INIT,
            name="patch_embed",
        )
        x, class_position, turns = embed(patches), 0.0, self._turns(grid)  # (B, N, D)
        if self.rope != "dinov3":
            class_position, patch_positions = self._positions(grid)
            x = x + patch_positions
        x = jnp.concatenate([*self._prefix(class_position, len(x)), x], axis=1)
        if self.pre_norm:
            x = layer_norm(self.norm_epsilon, affine=True, name="pre_norm")(x)
        blocks = [
            ViTBlock(
                self.num_heads,
                int(self.dim * self.mlp_ratio),
                self.swiglu,
                self.activation,
                self.layer_scale,
                self.norm_epsilon,
                self.dtype,
                self.rope == "pe",
                name=f"blocks_{i}",
            )
            for i in range(self.depth)
        ]
        first, between = int(self.class_token) + self.num_registers, {}
        if self.scan and not self.averaged and not self.is_initializing():
            x = scan_blocks(blocks, x, None, turns, dtype=self.dtype)
        else:
            for i, block in enumerate(blocks):
                x = block(x, None, turns)
                if i in self.averaged:
                    between[i] = x[:, first:]
        norm = layer_norm(self.norm_epsilon, affine=self.final_affine, name="norm")
        norm = norm if self.final_norm else _identity
        x = norm(x)
        patches = _average([norm(between[i]) for i in self.averaged]) if between else x[:, first:]
        return ViTTokens(patch_tokens=patches, class_token=x[:, 0] if self.class_token else None)

    def _prefix(self, class_position, batch):
        """The tokens before the patch tokens, (B, n, D) each: class token, registers."""
        prefix = []
        if self.class_token:
            prefix.append(self.param("class_token", _INIT, (1, 1, self.dim)) + class_position)
        if self.num_registers:
            shape = (1, self.num_registers, self.dim)
            prefix.append(self.param("register_tokens", _INIT, shape))
        return [jnp.broadcast_to(tokens, (batch, *tokens.shape[1:])) for tokens in prefix]

    def _patches(self, images):
        """(B, H, W, C) -> (B, N, P) and the grid (rows, columns); P = p * p * C without a stem."""
        height, width = images.shape[1:3]
        p = self.patch_size
        if height % p or width % p:
            raise UserError(
                f"images of {height} x {width} pixels do not divide into patches of {p} x {p}; "
                f"resize them to multiples of {p}"
            )
        rows, columns = height // p, width // p
        x = images
        for i, features in enumerate(self.stem):
            x = ConvLevel(features, self.dtype, name=f"stem_{i}")(x)
        batch, channels, p = len(x), x.shape[-1], p // 2 ** len(self.stem)
        x = x.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows * columns, p * p * channels), (rows, columns)

    def _turns(self, grid):
        """The angles of the patch tokens' rotary positions, or None."""
        head = self.dim // self.num_heads
        if self.rope == "dinov3":
            powers = functools.partial(grid_periods, head)
            return grid_turns(*grid, self.variable("constants", "periods", powers).value)
        return pair_turns(*grid, head, int(self.class_token)) if self.rope else None

    def _positions(self, grid):
        """The table's entries for the class token (1, 1, D) or 0, and for the grid (1, N, D)."""
        native, count = self.native_grid, int(self.class_token and self.class_position)
        table = self.param("position_table", _INIT, (1, count + native**2, self.dim))
        prefix, patches = table[:, :count], table[:, count:]
        if grid != (native, native):
            patches = patches.reshape(1, native, native, self.dim)
            patches = TABLE_FILTERS[self.table_filter](patches, *grid)
            patches = patches.reshape(1, grid[0] * grid[1], self.dim)
        return (prefix if count else 0.0), patches


def _identity(x):
    return x


def _average(outputs):
    """The average of tokens (B, N, D), plus the mean over N of the last."""
    return sum(outputs) / len(outputs) + outputs[-1].mean(axis=1, keepdims=True)


def _custom(fields: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """The position table has the grid of `resolution`, and there is no LayerScale."""
    return {"native_grid": resolution // fields["patch_size"], "layer_scale": None}


def _check(vit: ViT, entry: Section, path: str) -> None:
    if entry["stem"]:
        _check_stem(entry, path)
    kind, arch = entry["preprocessing"], entry["arch"]
    if kind not in TEACHER_KINDS:
        raise UserError(f"{path}.preprocessing is {kind!r}: use one of {', '.join(TEACHER_KINDS)}")
    trained = VIT_CONFIGS[arch].get("preprocessing", ViT.preprocessing) if arch else kind
    if kind in RESIZING_KINDS and kind not in (trained, "vavae"):
        raise UserError(
            f"{path}.preprocessing is {kind!r}, but {arch} was trained with {trained!r}: "
            "set both keys"
        )
    pixels = entry["token_pixels"]
    if kind not in RESIZING_KINDS and pixels != TOKEN_PIXELS:
        raise UserError(
            f"{path}.token_pixels is {pixels}, but {kind!r} does not resize: leave it at "
            f"{TOKEN_PIXELS}, or use {' or '.join(RESIZING_KINDS)}"
        )
    if not 8 <= pixels <= 256:
        raise UserError(f"{path}.token_pixels is {pixels}: use 8 to 256")


def _check_stem(entry, path):
    stem, patch = tuple(entry["stem"]), entry["patch_size"]
    if entry["arch"]:
        raise UserError(
            f"{path}.stem is {stem}, but {entry['arch']} has none: leave {path}.arch or the stem "
            "empty"
        )
    if patch % 2 ** len(stem):
        raise UserError(
            f"{path}.stem has {len(stem)} levels, each of which halves the image, but "
            f"{path}.patch_size is {patch}: use a multiple of {2 ** len(stem)}"
        )
    if any(width < 8 or width % 8 for width in stem):
        raise UserError(f"{path}.stem is {stem}: use widths that are multiples of 8")


FAMILY = Family(
    ViT,
    options=dict(
        patch_size=int,
        hidden_size=int,
        depth=int,
        num_heads=int,
        stem=ViT.stem,  # widths of convolutional levels before the patches
        preprocessing=ViT.preprocessing,  # one of TEACHER_KINDS
        token_pixels=ViT.token_pixels,  # of the image, for the kinds that resize to 14
    ),
    fields={"hidden_size": "dim"},
    presets=VIT_CONFIGS,
    custom=_custom,
    check=_check,
)
