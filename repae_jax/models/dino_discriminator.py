"""The discriminator of RAE's decoders: heads on the features of a frozen DINO."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repae_jax.models.encoders.vit import ViT, ViTBlock
from repae_jax.models.family import Family, Section
from repae_jax.models.resize import resize_bilinear
from repae_jax.models.spectral_norm import InstanceNorm, SpectralConv1d
from repae_jax.utils.schema import Side, each, whole

ENCODER = "encoder"  # the entry of "constants" with the parameters of the frozen ViT
_SMALL = {"dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"dim": 768, "depth": 12, "num_heads": 12}
DINO_CONFIGS = {
    "dino-s8": {**_SMALL, "patch_size": 8},
    "dino-s16": {**_SMALL, "patch_size": 16},
    "dino-b16": {**_BASE, "patch_size": 16},
}


class DinoHead(nn.Module):
    """One logit per token, from the features of one block.

    Attributes:
      kernel: the length of the convolution over tokens.
      dtype: the type of the convolutions.
    """

    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (B, N, D) -> logits (B, N), float32."""
        x = self._block(x, 1, 1, train)
        x = (x + self._block(x, self.kernel, 2, train)) / math.sqrt(2.0)
        x = SpectralConv1d(1, dtype=self.dtype, name="conv_3")(x, train=train)
        return x[..., 0].astype(jnp.float32)

    def _block(self, x, kernel, index, train):
        conv = SpectralConv1d(x.shape[-1], kernel, self.dtype, name=f"conv_{index}")
        norm = InstanceNorm(dtype=self.dtype, name=f"norm_{index}")
        return nn.leaky_relu(norm(conv(x, train=train)), 0.2)


class DinoDiscriminator(nn.Module):
    """Heads on the patch tokens of a frozen DINO (RAE, arXiv 2510.11690; StyleGAN-T, 2301.09515).

    The first head sees the last block, the others the blocks of `blocks`, so with the default two
    heads see the same features. The ViT is DINO's with the tanh approximation of GELU, without the
    final norm. The parameters of the heads are in "params", their power iterations in
    "batch_stats", and the ViT's parameters in "constants", which no step changes.

    Attributes:
      patch_size, dim, depth, num_heads: the sizes of the ViT.
      blocks: the blocks whose outputs a head sees, counted from 1.
      kernel: the length of the heads' convolution over tokens, odd.
      side: pixels along a side of the ViT's input, to which images are resized (bilinear, without
        antialias).
      dtype: the type of the matrix products; norms, spectral norms and logits are float32.
    """

    patch_size: int
    dim: int
    depth: int
    num_heads: int
    blocks: tuple[int, ...] = (3, 6, 9, 12)
    kernel: int = 9
    side: int = 224
    dtype: jnp.dtype = jnp.float32

    # See `models/discriminators.py`.
    generator_in_train_mode = False
    fakes_first = True
    waits = True

    @nn.nowrap
    def encoder(self) -> ViT:
        """The frozen ViT."""
        return ViT(
            patch_size=self.patch_size,
            native_grid=self.side // self.patch_size,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            activation="tanh_gelu",
            layer_scale=None,
            preprocessing="imagenet",
            family="dino",
            dtype=self.dtype,
            parent=None,
        )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> logits (B, heads * N), float32.

        `train` does a step of the power iterations, and keeps it where `batch_stats` is mutable.
        """
        if x.shape[1:3] != (self.side, self.side):
            x = resize_bilinear(x, self.side, self.side)
        x = (0.5 * x + 0.5 - IMAGENET_MEAN) / IMAGENET_STD
        weights = self.variable("constants", ENCODER, self._fresh_encoder).value
        outputs = _block_outputs(self.encoder(), weights, x)
        features = [outputs[-1], *(outputs[block - 1] for block in self.blocks)]
        heads = [DinoHead(self.kernel, self.dtype, name=f"heads_{i}") for i in range(len(features))]
        logits = [head(f, train=train) for head, f in zip(heads, features, strict=True)]
        return jnp.concatenate(logits, axis=1)

    def _fresh_encoder(self):
        image = jnp.zeros((1, self.side, self.side, 3))
        return self.encoder().init(self.make_rng("params"), image)["params"]


def _block_outputs(vit: ViT, params: Any, x: jax.Array) -> list[jax.Array]:
    """The patch tokens (B, N, D) after every block."""
    _, kept = vit.apply(
        {"params": params},
        x,
        capture_intermediates=lambda module, _: isinstance(module, ViTBlock),
        mutable=["intermediates"],
    )
    blocks = kept["intermediates"]
    return [blocks[f"blocks_{i}"]["__call__"][0][:, 1:] for i in range(vit.depth)]


def _check(module: DinoDiscriminator, section: Section, path: str) -> None:
    if beyond := [block for block in module.blocks if block > module.depth]:
        raise UserError(
            f"{path}.blocks has {beyond[0]}, but the ViT has {module.depth} blocks: use 1 to "
            f"{module.depth}"
        )
    if module.dim % module.num_heads:
        raise UserError(
            f"{path}.hidden_size is {module.dim}, not divisible by {path}.num_heads "
            f"{module.num_heads}"
        )
    if module.side % module.patch_size:
        below = module.side // module.patch_size * module.patch_size
        raise UserError(
            f"{path}.side is {module.side}, not divisible by the patch size {module.patch_size}: "
            f"use {below or module.patch_size}"
        )
    if module.kernel % 2 == 0:
        raise UserError(f"{path}.kernel is {module.kernel}: use an odd number")
    tokens = (module.side // module.patch_size) ** 2
    if module.kernel // 2 > tokens:
        raise UserError(
            f"{path}.kernel is {module.kernel}, but the ViT has {tokens} tokens: use at most "
            f"{2 * tokens + 1}"
        )


def _describe(module: DinoDiscriminator) -> str:
    return (
        f"DINO of width {module.dim}, depth {module.depth}, patch {module.patch_size}, at "
        f"{module.side} pixels; {len(module.blocks) + 1} heads, kernel {module.kernel}"
    )


FAMILY = Family(
    DinoDiscriminator,
    options={
        "patch_size": int,
        "hidden_size": int,
        "depth": int,
        "num_heads": int,
        "blocks": each(whole(1, 256), 0, 64),  # whose outputs a head sees, beside the last
        "kernel": whole(1, 255),
        "side": Side,  # to which images are resized
    },
    fields={"hidden_size": "dim"},
    presets=DINO_CONFIGS,
    check=_check,
    describe=_describe,
)
