"""RAE: a frozen representation encoder, and a ViT that decodes its tokens (arXiv 2510.11690).

The encoder's weights are constants: a run trains the decoder alone. The encoder is deterministic,
and its last norm has no scale and bias, so every latent has mean 0 and variance 1 over channels.

RAEv2 (arXiv 2605.18324) averages the tokens of several of the encoder's blocks, whose latents keep
more of the image, and decodes to pixels in [0, 1].
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repae_jax.models.encoders.vit import ViT, ViTBlock
from repae_jax.models.encoders.vit_presets import VIT_CONFIGS
from repae_jax.models.family import Family, Section
from repae_jax.models.inputs import check_images, check_latents
from repae_jax.models.layers import Dense, layer_norm, sincos_position_table
from repae_jax.models.remat import rematerialize
from repae_jax.models.resize import resize_bicubic
from repae_jax.models.rotary import grid_periods
from repae_jax.models.tokenizers.distributions import Point
from repae_jax.utils.schema import Text, Width, each, real, whole

_EPSILON = 1e-12  # of the decoder's norms
_INIT = initializers.truncated_normal(0.02)
_HEAD_WIDTH = 64  # of all encoders


@dataclasses.dataclass(frozen=True)
class EncoderKind:
    """What all encoders of a kind share.

    Attributes:
      side: the side of the images, in pixels, that the position table was made for.
      pixel_mean, pixel_std: of RGB pixels in [0, 1].
      fields: of `ViT`, beside the sizes.
    """

    side: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    fields: Mapping[str, Any]


def _numbers(array):
    return tuple(float(str(value)) for value in array)


_IMAGENET = (_numbers(IMAGENET_MEAN), _numbers(IMAGENET_STD))
# `config.tokenizer.encoder` -> its kind; MAE's norms are transformers', unlike its authors' code.
ENCODERS = {
    "dinov2": EncoderKind(518, *_IMAGENET, VIT_CONFIGS["dinov2-b-reg"]),
    "siglip2": EncoderKind(256, (0.5,) * 3, (0.5,) * 3, VIT_CONFIGS["siglip2-b"]),
    "mae": EncoderKind(
        224,
        *_IMAGENET,
        {
            **VIT_CONFIGS["mae-l"],
            "final_norm": True,
            "norm_epsilon": 1e-12,
            "table_filter": "bicubic",
        },
    ),
    "dinov3": EncoderKind(256, *_IMAGENET, VIT_CONFIGS["dinov3-b"]),
}

# The decoders that the paper trains.
_XL = dict(decoder_width=1152, decoder_depth=28, decoder_heads=16, decoder_hidden=4096)


def _published(encoder, width, depth, patch, decoder):
    sizes = dict(latent_channels=width, encoder_depth=depth, encoder_patch=patch)
    return dict(encoder=encoder, **sizes, **decoder)


def _published_v2(encoder_layers):
    of_v2 = dict(encoder_layers=tuple(encoder_layers), normalized_pixels=False)
    return dict(_published("dinov3", 1024, 24, 16, _XL), **of_v2)


# Dimensions of the published families.
RAE_CONFIGS = {
    "rae-dinov2-base": _published("dinov2", 768, 12, 14, _XL),
    "rae-dinov2-small": _published("dinov2", 384, 12, 14, _XL),
    "rae-dinov2-large": _published("dinov2", 1024, 24, 14, _XL),
    "rae-siglip2-base": _published("siglip2", 768, 12, 16, _XL),
    "rae-mae-base": _published("mae", 768, 12, 16, _XL),
    "raev2-dinov3-large-k1": _published_v2(()),
    "raev2-dinov3-large-k7": _published_v2(range(11, 24, 2)),
    "raev2-dinov3-large-k23": _published_v2(range(1, 24)),
}


class Decoder(nn.Module):
    """Latents (B, h, w, c) -> patches of pixels (B, h * patch, w * patch, channels).

    A pre-norm ViT with a learned class token and fixed sin-cos positions of the others, as MAE's
    decoder (arXiv 2111.06377).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    channels: int
    position_step: float
    table_grid: int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        batch, rows, columns, _ = z.shape
        x = Dense(self.width, dtype=self.dtype, kernel_init=_INIT, name="embed")(z)
        token = self.param("class_token", initializers.zeros, (1, 1, self.width))
        if self.table_grid:
            table = self.variable("constants", "position_table", self._table).value
            token, positions = token + table[:, :1], table[:, 1 : 1 + rows * columns]
            x = x + positions.reshape(1, rows, columns, self.width)
        else:
            x = x + self._positions(rows, columns)
        token = jnp.broadcast_to(token, (batch, 1, self.width))
        x = jnp.concatenate([token, x.reshape(batch, rows * columns, self.width)], axis=1)
        block = rematerialize(ViTBlock, self.remat)
        for i in range(self.depth):
            x = block(
                self.heads, self.hidden, False, "gelu", None, _EPSILON, self.dtype,
                name=f"blocks_{i}",
            )(x)  # fmt: skip
        x = layer_norm(_EPSILON, affine=True, name="norm")(x)[:, 1:]
        p, channels = self.patch, self.channels
        x = Dense(p * p * channels, dtype=self.dtype, kernel_init=_INIT, name="pred")(x)
        x = x.reshape(batch, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, rows * p, columns * p, channels)

    def _table(self):
        """The table (1, 1 + grid^2, width) with a row of zeros for the class token."""
        grid = self._positions(self.table_grid, self.table_grid)
        return jnp.pad(grid.reshape(1, -1, self.width), ((0, 0), (1, 0), (0, 0)))

    def _positions(self, rows, columns):
        """The table (rows, columns, width)."""
        side = max(rows, columns)
        table = sincos_position_table(self.width, side, self.position_step)
        return table.reshape(side, side, self.width)[:rows, :columns]


class RAE(nn.Module):
    """The frozen encoder and the decoder of RAE; its latents are points of factor `factor`.

    `RAE_CONFIGS` holds the published dimensions.

    Attributes:
      encoder: a key of `ENCODERS`.
      latent_channels: c, the encoder's width, a multiple of 64.
      encoder_depth: its blocks.
      encoder_patch: the side of its patches; images are resized (bicubic, a = -0.75, no antialias)
        so that each patch covers `factor` pixels.
      decoder_width, decoder_depth, decoder_heads, decoder_hidden: the decoder's width, blocks,
        heads, and inner width of its MLPs.
      encoder_hidden: the inner width of the encoder's MLPs; None: 4 c.
      encoder_layers: the encoder's blocks, counted from 0, whose tokens are averaged (RAEv2, see
        `ViT.averaged`); (): the last block's are the latents.
      factor: the side of the decoder's patches.
      position_step: the distance of neighbors in the decoder's table of positions. diffusers has
        16 / grid, which differs from 1 for latents of other than 16 x 16.
      table_grid: above 0, the decoder's table of positions is a constant, of this side, that a file
        brings: RAE's training moves the table. Latents then have this side.
      pixel_mean, pixel_std: of the encoder's RGB pixels, in [0, 1]; (): those of its kind.
      normalized_pixels: whether the decoder's pixels are normalized as the encoder's (RAE); RAEv2's
        are in [0, 1].
      image_channels: channels of the images.
      dtype: the type of the matrix products; norms and the residual stream are float32.
      remat: the policy of the decoder's blocks, one of `remat.POLICIES`.
    """

    encoder: str
    latent_channels: int
    encoder_depth: int
    encoder_patch: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_hidden: int
    encoder_hidden: int | None = None
    encoder_layers: tuple[int, ...] = ()
    factor: int = 16
    position_step: float = 1.0
    table_grid: int = 0
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    normalized_pixels: bool = True
    image_channels: int = 3
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    statistics_by_position = True
    deterministic = True
    frozen_encoder = True
    last_layer = "decoder/pred/kernel"

    @property
    def vit(self) -> ViT:
        """The encoder's module; its parameters are this module's constants."""
        kind, dim = ENCODERS[self.encoder], self.latent_channels
        hidden = self.encoder_hidden or 4 * dim
        sizes = dict(
            patch_size=self.encoder_patch,
            native_grid=kind.side // self.encoder_patch,
            dim=dim,
            depth=self.encoder_depth,
            num_heads=dim // _HEAD_WIDTH,
            mlp_ratio=math.nextafter(hidden / dim, math.inf),  # which rounds down to `hidden`
            final_affine=False,
            averaged=self.encoder_layers,
        )
        return ViT(**{**kind.fields, **sizes}, dtype=self.dtype, parent=None)

    @property
    def pixel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the encoder's pixels, (3,) each."""
        kind = ENCODERS[self.encoder]
        chosen = (self.pixel_mean or kind.pixel_mean, self.pixel_std or kind.pixel_std)
        return tuple(np.asarray(values, np.float32) for values in chosen)

    def setup(self):
        self.frozen = self.variable("constants", "encoder", self._initial_encoder)
        if self.vit.rope:
            self.periods = self.variable("constants", "periods", self._initial_periods)
        self.decoder = Decoder(
            self.decoder_width, self.decoder_depth, self.decoder_heads, self.decoder_hidden,
            self.factor, self.image_channels, self.position_step, self.table_grid, self.dtype,
            self.remat,
        )  # fmt: skip

    def _initial_encoder(self):
        patch = jnp.zeros((1, self.encoder_patch, self.encoder_patch, self.image_channels))
        return self.vit.init(self.make_rng("params"), patch)["params"]

    def _initial_periods(self):
        return jnp.asarray(grid_periods(_HEAD_WIDTH))

    def _encoder_variables(self):
        """The variables of `vit`."""
        constants = {"constants": {"periods": self.periods.value}} if self.vit.rope else {}
        return {"params": self.frozen.value, **constants}

    def encode(self, images: jax.Array) -> Point:
        """Images (B, H, W, 3) in [-1, 1] -> points (B, H / f, W / f, c).

        Raises:
          TypeError, UserError: images of another type or shape (see `inputs.check_images`).
        """
        check_images(images, self.image_channels, self.factor)
        rows, columns = (side // self.factor for side in images.shape[1:3])
        size = (rows * self.encoder_patch, columns * self.encoder_patch)
        x = (images.astype(jnp.float32) + 1.0) / 2.0
        if size != x.shape[1:3]:
            x = resize_bicubic(x, *size, a=-0.75, antialias=False)
        mean, std = self.pixel_statistics
        tokens = self.vit.apply(self._encoder_variables(), (x - mean) / std).patch_tokens
        return Point(tokens.reshape(len(images), rows, columns, -1).astype(jnp.float32))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3), about [-1, 1].

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        check_latents(latents, self.latent_channels)
        grid = latents.shape[1:3]  # any at initialization
        if self.table_grid and grid != (self.table_grid,) * 2 and not self.is_initializing():
            raise UserError(
                f"latents of {grid[0]} x {grid[1]}, but the decoder's table of positions is of "
                f"{self.table_grid} x {self.table_grid}: change the images' size"
            )
        pixels = self.decoder(latents).astype(jnp.float32)
        if self.normalized_pixels:
            mean, std = self.pixel_statistics
            pixels = pixels * std + mean
        return 2.0 * pixels - 1.0

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[Point, jax.Array]:
        """The points and the reconstruction of images; `noise` is ignored."""
        point = self.encode(images)
        return point, self.decode(point.sample(noise))


def _check(rae: RAE, _: Section, path: str) -> None:
    if rae.encoder not in ENCODERS:
        choices = " or ".join(map(repr, ENCODERS))
        raise UserError(f"{path}.encoder is {rae.encoder!r}: use {choices}")
    if rae.latent_channels % _HEAD_WIDTH:
        raise UserError(
            f"{path}.latent_channels is {rae.latent_channels}: an encoder has heads of "
            f"{_HEAD_WIDTH} channels, so give a multiple of {_HEAD_WIDTH}"
        )
    if ENCODERS[rae.encoder].side % rae.encoder_patch:
        raise UserError(
            f"{path}.encoder_patch is {rae.encoder_patch}, which does not divide the "
            f"{ENCODERS[rae.encoder].side} pixels of the {rae.encoder} encoder's position table"
        )
    layers = rae.encoder_layers
    if layers and (list(layers) != sorted(set(layers)) or layers[-1] >= rae.encoder_depth):
        raise UserError(
            f"{path}.encoder_layers is {layers}: give increasing numbers from 0 to "
            f"{rae.encoder_depth - 1}, or leave it empty for the last block"
        )
    if rae.decoder_width % 4 or rae.decoder_width % rae.decoder_heads:
        raise UserError(
            f"{path}.decoder_width is {rae.decoder_width}: give a multiple of 4 and of the "
            f"{rae.decoder_heads} heads of {path}.decoder_heads"
        )
    for key in ("pixel_mean", "pixel_std"):
        values = getattr(rae, key)
        if values and (len(values) != rae.image_channels or not min(rae.pixel_std, default=1) > 0):
            raise UserError(f"{path}.{key} is {values}: give three values, of pixel_std above 0")


FAMILY = Family(
    RAE,
    options={
        "encoder": Text,
        "latent_channels": whole(1, 4096),
        "encoder_depth": whole(1, 256),
        "encoder_patch": whole(1, 256),
        "encoder_hidden": Width,
        "encoder_layers": each(whole(0, 255), 0, 256),
        "decoder_width": Width,
        "decoder_depth": whole(1, 256),
        "decoder_heads": whole(1, 1024),
        "decoder_hidden": Width,
        "factor": whole(1, 256),
        "position_step": real(0, 1024),
        "table_grid": whole(0, 1024),
        "pixel_mean": each(real(-10, 10), 0, 3),
        "pixel_std": each(real(0, 10), 0, 3),
        "normalized_pixels": bool,
    },
    presets=RAE_CONFIGS,
    check=_check,
)
