"""The vision transformer of the DINOv2 family: frozen teachers, and small ones trained here."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.layers import MLP, Attention, Dense, layer_norm
from repae_jax.models.resize import resize_bicubic

# published sizes; pre-training ended at 518 pixels, so their tables have 37 x 37 positions
VIT_CONFIGS: dict[str, dict] = {
    "dinov2-s": {"patch_size": 14, "native_grid": 37, "dim": 384, "depth": 12, "num_heads": 6},
    "dinov2-b": {"patch_size": 14, "native_grid": 37, "dim": 768, "depth": 12, "num_heads": 12},
    "dinov2-l": {"patch_size": 14, "native_grid": 37, "dim": 1024, "depth": 24, "num_heads": 16},
    "dinov2-g": {
        "patch_size": 14,
        "native_grid": 37,
        "dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "swiglu": True,
    },
}
VIT_CONFIGS |= {f"{name}-reg": {**c, "num_registers": 4} for name, c in VIT_CONFIGS.items()}

_INIT = initializers.truncated_normal(0.02)


class ViTTokens(NamedTuple):
    """What a ViT returns, both after the final LayerNorm, float32."""

    patch_tokens: jax.Array  # (B, N, D), rows of the grid first
    class_token: jax.Array  # (B, D)


def create_vit(name: str, **overrides) -> "ViT":
    """The ViT of that name in `VIT_CONFIGS`; `overrides` are fields of `ViT`.

    Raises:
      UserError: no such name.
    """
    if name not in VIT_CONFIGS:
        raise UserError(f"unknown ViT {name!r}; choose one of {', '.join(sorted(VIT_CONFIGS))}")
    return ViT(**{**VIT_CONFIGS[name], **overrides})


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x): the feed-forward part of DINOv2-g.

    The inner width is two thirds of `hidden`, rounded up to a multiple of 8.
    """

    hidden: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: initializers.Initializer = initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., D)."""
        dim, inner = x.shape[-1], (int(self.hidden * 2 / 3) + 7) // 8 * 8
        x = Dense(2 * inner, dtype=self.dtype, kernel_init=self.kernel_init, name="w12")(x)
        gate, value = jnp.split(x, 2, axis=-1)
        x = nn.silu(gate) * value
        return Dense(dim, dtype=self.dtype, kernel_init=self.kernel_init, name="w3")(x)


class LayerScale(nn.Module):
    """A learned factor per feature, `init` at first (CaiT, arXiv 2103.17239, section 2)."""

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
    layer_scale: float | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        attention = Attention(self.num_heads, dtype=self.dtype, kernel_init=_INIT, name="attn")
        if self.swiglu:
            mlp = SwiGLU(self.hidden, dtype=self.dtype, kernel_init=_INIT, name="mlp")
        else:
            mlp = MLP(self.hidden, False, dtype=self.dtype, kernel_init=_INIT, name="mlp")
        for i, branch in enumerate((attention, mlp), start=1):
            y = branch(layer_norm(1e-6, affine=True, dtype=self.dtype, name=f"norm{i}")(x))
            x = x + (
                y if self.layer_scale is None else LayerScale(self.layer_scale, name=f"ls{i}")(y)
            )
        return x


class ViT(nn.Module):
    """Vision transformer with class token, optional registers, LayerScale and SwiGLU (DINOv2).

    Architecture of DINOv2 (arXiv 2304.07193) and, with registers, arXiv 2309.16588. Norms,
    softmax, the residual stream and the returned tokens are float32; the matrix products run
    in `dtype`.

    Attributes:
      patch_size: side of a patch, pixels.
      native_grid: side of the square grid that `position_table` holds, patches.
      dim: width D.
      depth: blocks.
      num_heads: attention heads.
      mlp_ratio: hidden width of the feed-forward part over D (for SwiGLU before its 2/3).
      swiglu: SwiGLU instead of the GELU MLP.
      layer_scale: initial LayerScale factor; None for none.
      num_registers: register tokens, inserted after the class token, without positions.
      class_position: the table's first entry belongs to the class token.
      table_antialias: how the table is resampled to another grid: True is bicubic with
        antialias (a = -0.5), as the REPA-E code and DINOv2 with registers do; False is plain
        bicubic (a = -0.75), as transformers' Dinov2Model does.
      dtype: of the matrix products.
    """

    patch_size: int
    native_grid: int
    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    swiglu: bool = False
    layer_scale: float | None = 1.0
    num_registers: int = 0
    class_position: bool = True
    table_antialias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> ViTTokens:
        """Preprocessed images (B, H, W, C) -> tokens of the (H / patch) x (W / patch) grid.

        Raises:
          UserError: a side is not a multiple of the patch size.
        """
        patches, grid = self._patches(images)
        x = Dense(self.dim, dtype=self.dtype, kernel_init=_INIT, name="patch_embed")(patches)
        prefix_positions, patch_positions = self._positions(grid)
        x = x + patch_positions  # (B, N, D)
        prefix = self.param("class_token", _INIT, (1, 1, self.dim)) + prefix_positions
        if self.num_registers:
            registers = self.param("register_tokens", _INIT, (1, self.num_registers, self.dim))
            prefix = jnp.concatenate([prefix, registers], axis=1)
        prefix = jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:]))
        x = jnp.concatenate([prefix, x], axis=1)
        for i in range(self.depth):
            x = ViTBlock(
                self.num_heads,
                int(self.dim * self.mlp_ratio),
                self.swiglu,
                self.layer_scale,
                self.dtype,
                name=f"blocks_{i}",
            )(x)
        x = layer_norm(1e-6, affine=True, name="norm")(x)
        return ViTTokens(patch_tokens=x[:, 1 + self.num_registers :], class_token=x[:, 0])

    def _patches(self, images):
        """(B, H, W, C) -> (B, N, p * p * C) and the grid (rows, columns)."""
        batch, height, width, channels = images.shape
        p = self.patch_size
        if height % p or width % p:
            raise UserError(
                f"images of {height} x {width} pixels do not divide into patches of {p} x {p}; "
                f"resize them to multiples of {p}"
            )
        rows, columns = height // p, width // p
        x = images.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows * columns, p * p * channels), (rows, columns)

    def _positions(self, grid):
        """The table's entries for the class token (1, 1, D) or 0, and for the grid (1, N, D)."""
        native, count = self.native_grid, int(self.class_position)
        table = self.param("position_table", _INIT, (1, count + native**2, self.dim))
        prefix, patches = table[:, :count], table[:, count:]
        if grid != (native, native):
            patches = patches.reshape(1, native, native, self.dim)
            patches = resize_bicubic(patches, *grid, antialias=self.table_antialias)
            patches = patches.reshape(1, grid[0] * grid[1], self.dim)
        return (prefix if count else 0.0), patches
