"""DC-AE: the deep compression autoencoder (arXiv 2410.10733), also SANA's (arXiv 2410.10629).

It is deterministic: an image has one latent. Its residual paths reshape space into channels, so
that convolutions learn the rest only; its low-resolution levels have linear attention.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.convolution import conv
from repae_jax.models.family import Family, Section
from repae_jax.models.inputs import check_images, check_latents
from repae_jax.models.remat import rematerialize
from repae_jax.models.tokenizers.dc_ae_layers import (
    ChannelNorm,
    Downsample,
    EfficientViTBlock,
    ResBlock,
    Upsample,
    mean_of_groups,
)
from repae_jax.models.tokenizers.distributions import Point
from repae_jax.utils.schema import Width, each, whole

_WIDTHS = (128, 256, 512, 512, 1024, 1024, 2048, 2048)


def _imagenet(levels, latent_channels):
    """The published autoencoders for ImageNet ("in") and mixed images ("mix")."""
    return dict(
        widths=_WIDTHS[:levels],
        encoder_layers=(0, 4, 8, 2, 2, 2, 2, 2)[:levels],
        decoder_layers=(0, 5, 10, 2, 2, 2, 2, 2)[:levels],
        attention_levels=tuple(range(3, levels)),
        batch_norm_levels=(0, 1, 2),
        latent_channels=latent_channels,
    )


# Dimensions of the published families.
DC_AE_CONFIGS = {
    "f32c32": _imagenet(6, 32),
    "f64c128": _imagenet(7, 128),
    "f128c512": _imagenet(8, 512),
    "f32c32-sana": dict(
        widths=_WIDTHS[:6],
        encoder_layers=(2, 2, 2, 3, 3, 3),
        decoder_layers=(3, 3, 3, 3, 3, 3),
        attention_levels=(3, 4, 5),
        scales=(5,),
        shuffle=False,
        latent_channels=32,
    ),
}


class _Levels(nn.Module):
    """What the encoder and the decoder share."""

    widths: tuple[int, ...]
    layers: tuple[int, ...]
    attention_levels: tuple[int, ...]
    batch_norm_levels: tuple[int, ...]
    scales: tuple[int, ...]
    head_width: int
    shuffle: bool
    channels: int  # of the result
    dtype: jnp.dtype
    remat: str

    @property
    def first(self):
        """The highest resolution with blocks."""
        return 0 if self.layers[0] else 1

    def blocks(self, x, level, name):
        batch_norm = level in self.batch_norm_levels
        for j in range(self.layers[level]):
            if level in self.attention_levels:
                kind = rematerialize(EfficientViTBlock, self.remat)
                block = functools.partial(kind, self.head_width, self.scales)
            else:
                block = rematerialize(ResBlock, self.remat)
            x = block(batch_norm, self.dtype, name=f"{name}_{level}_{j}")(x)
        return x


class Encoder(_Levels):
    """Image (B, H, W, 3) -> latent (B, H / f, W / f, channels)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        width, dtype = self.widths[self.first], self.dtype
        if self.first:
            x = Downsample(width, self.shuffle, dtype, shortcut=False, name="conv_in")(x)
        else:
            x = conv(x.shape[-1], width, 3, dtype=dtype, name="conv_in")(x)
        for level in range(self.first, len(self.widths)):
            x = self.blocks(x, level, "down")
            if level + 1 < len(self.widths):
                following = self.widths[level + 1]
                x = Downsample(following, self.shuffle, dtype, name=f"downsample_{level}")(x)
        h = conv(x.shape[-1], self.channels, 3, dtype=dtype, name="conv_out")(x)
        return h + mean_of_groups(x, self.channels)


class Decoder(_Levels):
    """Latent (B, h, w, c) -> image (B, h * f, w * f, channels)."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        z, dtype, width = z.astype(self.dtype), self.dtype, self.widths[-1]
        x = conv(z.shape[-1], width, 3, dtype=dtype, name="conv_in")(z)
        x = x + jnp.repeat(z, width // z.shape[-1], axis=-1)
        for level in reversed(range(self.first, len(self.widths))):
            if level + 1 < len(self.widths):
                name = f"upsample_{level}"
                x = Upsample(self.widths[level], self.shuffle, dtype, name=name)(x)
            x = self.blocks(x, level, "up")
        x = nn.relu(ChannelNorm(dtype, name="norm_out")(x))
        if self.first:
            return Upsample(self.channels, self.shuffle, dtype, shortcut=False, name="conv_out")(x)
        return conv(x.shape[-1], self.channels, 3, dtype=dtype, name="conv_out")(x)


class AutoencoderDC(nn.Module):
    """DC-AE's encoder and decoder.

    `DC_AE_CONFIGS` holds the published dimensions. Weights are initialized as in PyTorch.

    Attributes:
      widths: channels of each level, the highest resolution first; the down-sampling factor is
        2 ** (levels - 1). Each is a multiple of the one before or divides four times it.
      encoder_layers, decoder_layers: blocks of each level. Without blocks at level 0 the first
        convolution leads to level 1 at once; no other level may be without.
      latent_channels: c, which divides the last width.
      attention_levels: the levels of EfficientViT blocks; others have residual blocks.
      batch_norm_levels: the decoder's levels with BatchNorm and ReLU in place of an RMS norm and
        SiLU; its running statistics are constants.
      scales: sizes of the depthwise convolutions of the attention.
      head_width: channels of a head, which divides the widths with attention.
      shuffle: whether pixels become channels, and channels pixels, where the resolution changes;
        otherwise convolutions of stride 2, and repeated pixels (SANA's).
      image_channels: channels of the images.
      dtype: the type of the convolutions; norms and the attention's sums are float32.
      remat: the policy of the blocks, one of `remat.POLICIES`.
    """

    widths: tuple[int, ...]
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    latent_channels: int
    attention_levels: tuple[int, ...] = ()
    batch_norm_levels: tuple[int, ...] = ()
    scales: tuple[int, ...] = ()
    head_width: int = 32
    shuffle: bool = True
    image_channels: int = 3
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    deterministic = True
    last_encoder_layer = "encoder/conv_out/kernel"

    @property
    def last_layer(self) -> str:
        """The path of the kernel of the decoder's last layer."""
        within = "" if self.decoder_layers[0] else "conv/"
        return f"decoder/conv_out/{within}kernel"

    @property
    def factor(self) -> int:
        """Down-sampling factor f between image and latent."""
        return 2 ** (len(self.widths) - 1)

    def setup(self):
        shared = dict(
            widths=self.widths, attention_levels=self.attention_levels, scales=self.scales,
            head_width=self.head_width, shuffle=self.shuffle, dtype=self.dtype, remat=self.remat,
        )  # fmt: skip
        self.encoder = Encoder(
            layers=self.encoder_layers, batch_norm_levels=(), channels=self.latent_channels,
            **shared,
        )  # fmt: skip
        self.decoder = Decoder(
            layers=self.decoder_layers, batch_norm_levels=self.batch_norm_levels,
            channels=self.image_channels, **shared,
        )  # fmt: skip

    def encode(self, images: jax.Array) -> Point:
        """Images (B, H, W, 3) in [-1, 1] -> points (B, H / f, W / f, c).

        Raises:
          TypeError, UserError: images of another type or shape (see `inputs.check_images`).
        """
        check_images(images, self.image_channels, self.factor)
        return Point(self.encoder(images).astype(jnp.float32))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3), about [-1, 1].

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        check_latents(latents, self.latent_channels)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[Point, jax.Array]:
        """The points and the reconstruction of images; `noise` is ignored."""
        point = self.encode(images)
        return point, self.decode(point.sample(noise))


def check_dimensions(dc: AutoencoderDC, where: str) -> None:
    """Raise UserError for dimensions that do not fit together.

    Args:
      dc: the module.
      where: the text before a field's name in an error, such as "config.tokenizer.".
    """
    levels = len(dc.widths)
    for key in ("encoder_layers", "decoder_layers"):
        layers = getattr(dc, key)
        if len(layers) != levels:
            raise UserError(
                f"{where}{key} is {layers}: the {levels} levels of {where}widths need {levels} "
                "entries"
            )
        if 0 in layers[1:]:
            raise UserError(f"{where}{key} is {layers}: only the first level may have no blocks")
    if bool(dc.encoder_layers[0]) != bool(dc.decoder_layers[0]):
        raise UserError(
            f"{where}encoder_layers begins with {dc.encoder_layers[0]} and decoder_layers with "
            f"{dc.decoder_layers[0]}: give both of them blocks at the first level, or neither"
        )
    for key in ("attention_levels", "batch_norm_levels"):
        for level in getattr(dc, key):
            if not 0 <= level < levels:
                raise UserError(f"{where}{key} has {level}: levels run from 0 to {levels - 1}")
    for level in dc.attention_levels:
        if dc.widths[level] % dc.head_width:
            raise UserError(
                f"{where}head_width is {dc.head_width}, which does not divide the level of "
                f"{dc.widths[level]} channels"
            )
    if any(size % 2 == 0 for size in dc.scales):
        raise UserError(f"{where}scales is {dc.scales}: sizes are odd")
    if dc.widths[-1] % dc.latent_channels:
        raise UserError(
            f"{where}latent_channels is {dc.latent_channels}, which does not divide the last of "
            f"the widths, {dc.widths[-1]}"
        )
    first = 0 if dc.encoder_layers[0] else 1
    used = dc.widths[first:]
    for width, following in itertools.pairwise(used):
        fits = 4 * width % following == 0 and (not dc.shuffle or following % 4 == 0)
        if not fits:
            raise UserError(
                f"{where}widths has {following} after {width}: a level has 1, 2 or 4 times the "
                "channels of the one before, and a multiple of 4"
            )


def _check(dc: AutoencoderDC, _: Section, path: str) -> None:
    check_dimensions(dc, f"{path}.")


FAMILY = Family(
    AutoencoderDC,
    options={
        "widths": each(Width, 2, 8),
        "encoder_layers": each(whole(0, 32), 2, 8),
        "decoder_layers": each(whole(0, 32), 2, 8),
        "latent_channels": whole(1, 4096),
        "attention_levels": each(whole(0, 7), 0, 8),
        "batch_norm_levels": each(whole(0, 7), 0, 8),
        "scales": each(whole(1, 31), 0, 4),
        "head_width": Width,
        "shuffle": bool,
    },
    presets=DC_AE_CONFIGS,
    check=_check,
)
