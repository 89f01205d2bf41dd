"""AutoencoderKL: the convolutional VAE of latent diffusion (arXiv 2112.10752, appendix G)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.convolution import conv_of
from repae_jax.models.family import Family, Section
from repae_jax.models.group_norm import GroupNorm
from repae_jax.models.inputs import check_images, check_latents
from repae_jax.models.layers import attend
from repae_jax.models.pixel_shuffle import shuffle, unshuffle
from repae_jax.models.remat import rematerialize
from repae_jax.models.stripes import restripe, unfold
from repae_jax.models.tokenizers.distributions import Gaussian
from repae_jax.models.upsample import UpsampleConv
from repae_jax.utils.schema import Width, each, whole

# Dimensions of the published families. `attention_levels` are the levels (0 = full resolution)
# with attention after every block; they do not depend on the input's size.
VAE_CONFIGS = {
    "f8d4": dict(channels=128, multipliers=(1, 2, 4, 4), latent_channels=4),
    "f8d16": dict(  # SD3.5 and FLUX
        channels=128, multipliers=(1, 2, 4, 4), latent_channels=16, quant_conv=False
    ),
    "f16d32": dict(
        channels=128, multipliers=(1, 1, 2, 2, 4), latent_channels=32, attention_levels=(4,)
    ),
    "flux2": dict(  # 2 x 2 positions of f8d32
        channels=128, multipliers=(1, 2, 4, 4), latent_channels=128, patchify=True
    ),
    "flux2-small": dict(  # FLUX.2's small decoder
        channels=128, multipliers=(1, 2, 4, 4), latent_channels=128, patchify=True,
        decoder_channels=96,
    ),
}  # fmt: skip


def norm_of(module: nn.Module) -> Callable[..., GroupNorm]:
    """`GroupNorm` with the groups, type and stripes of `module`."""
    return functools.partial(GroupNorm, module.groups, module.dtype, stripes=module.stripes)


class ResBlock(nn.Module):
    """Norm-SiLU-conv twice, with a 1x1 shortcut where the width changes."""

    features: int
    groups: int
    dtype: jnp.dtype
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        width, conv, norm = x.shape[-1], conv_of(self), norm_of(self)
        h = norm(name="norm1")(x)
        h = conv(width, self.features, 3, name="conv1")(h)
        h = norm(name="norm2")(h)
        h = conv(self.features, self.features, 3, name="conv2")(h)
        if width != self.features:
            x = conv(width, self.features, 1, name="shortcut")(x)
        return x + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions; softmax in float32."""

    groups: int
    dtype: jnp.dtype
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels, conv = x.shape[-1], conv_of(self)
        h = norm_of(self)(activate=False, name="norm")(x)

        def project(name, h):
            return conv(channels, channels, 1, name=name)(h)

        def positions(h):  # of whole images, (B, H W, 1, C)
            return h.reshape(len(x) // self.stripes, -1, 1, channels)

        q, k, v = (positions(project(name, h)) for name in "qkv")
        h = attend(q, k, v).reshape(x.shape)
        return x + project("proj_out", h)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if `attention`."""

    features: int
    num_blocks: int
    attention: bool
    groups: int
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = rematerialize(ResBlock, self.remat)
        attention = rematerialize(SpatialAttention, self.remat)
        shared = (self.groups, self.dtype, self.stripes)
        for i in range(self.num_blocks):
            x = block(self.features, *shared, name=f"block_{i}")(x)
            if self.attention:
                x = attention(*shared, name=f"attn_{i}")(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    groups: int
    dtype: jnp.dtype
    attention: bool
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = rematerialize(ResBlock, self.remat)
        shared = (self.groups, self.dtype, self.stripes)
        x = block(x.shape[-1], *shared, name="block_1")(x)
        if self.attention:
            attention = rematerialize(SpatialAttention, self.remat)
            x = attention(*shared, name="attn_1")(x)
        return block(x.shape[-1], *shared, name="block_2")(x)


class Encoder(nn.Module):
    """Image (B, H, W, 3) -> (B, H / f, W / f, 2 * latent_channels)."""

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    latent_channels: int
    groups: int
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, last = conv_of(self), len(self.multipliers) - 1
        x, stripes = restripe(x, 1, self.stripes)
        h = conv(x.shape[-1], self.channels, 3, stripes=stripes, name="conv_in")(x)
        for i, multiplier in enumerate(self.multipliers):
            h = Level(
                self.channels * multiplier,
                self.num_res_blocks,
                i in self.attention_levels,
                self.groups,
                self.dtype,
                self.remat,
                stripes,
                name=f"down_{i}",
            )(h)
            if i != last:
                # One row and column of zeros at the bottom and right only.
                h = conv(
                    h.shape[-1],
                    h.shape[-1],
                    3,
                    stride=2,
                    padding=((0, 1), (0, 1)),
                    stripes=stripes,
                    name=f"downsample_{i}",
                )(h)
                h, stripes = restripe(h, stripes, self.stripes)
        h = Middle(
            self.groups,
            self.dtype,
            self.middle_attention,
            self.remat,
            stripes,
            name="mid",
        )(h)
        h = GroupNorm(self.groups, self.dtype, stripes=stripes, name="norm_out")(h)
        h = conv(h.shape[-1], 2 * self.latent_channels, 3, stripes=stripes, name="conv_out")(h)
        return unfold(h, stripes)


class Decoder(nn.Module):
    """Latent (B, h, w, c) -> image (B, h * f, w * f, image_channels)."""

    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    image_channels: int
    groups: int
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        conv, width = conv_of(self), self.channels * self.multipliers[-1]
        z, stripes = restripe(z, 1, self.stripes)
        h = conv(z.shape[-1], width, 3, stripes=stripes, name="conv_in")(z)
        h = Middle(
            self.groups,
            self.dtype,
            self.middle_attention,
            self.remat,
            stripes,
            name="mid",
        )(h)
        for i in reversed(range(len(self.multipliers))):
            h = Level(
                self.channels * self.multipliers[i],
                self.num_res_blocks + 1,
                i in self.attention_levels,
                self.groups,
                self.dtype,
                self.remat,
                stripes,
                name=f"up_{i}",
            )(h)
            if i != 0:
                width = h.shape[-1]
                h = UpsampleConv(width, width, self.dtype, stripes, name=f"upsample_{i}")(h)
                h, stripes = restripe(h, stripes, self.stripes)
        h = GroupNorm(self.groups, self.dtype, stripes=stripes, name="norm_out")(h)
        h = conv(h.shape[-1], self.image_channels, 3, stripes=stripes, name="conv_out")(h)
        return unfold(h, stripes)


class AutoencoderKL(nn.Module):
    """Encoder, decoder, and the 1x1 convolutions around the latent.

    Every dimension is free; `VAE_CONFIGS` holds the published ones. Parameter names follow the
    LDM family, so that its checkpoints load tensor by tensor. Weights are initialized as in
    PyTorch.

    Attributes:
      channels: width at full resolution.
      multipliers: width of each level in units of `channels`; the down-sampling factor is
        2 ** (levels - 1).
      latent_channels: c, the channels of the latent.
      patchify: whether 2 x 2 positions of what the networks see are one position of the latent, of
        four times the channels, in PyTorch's order (FLUX.2). Then c is a multiple of 4, and the
        down-sampling factor twice as large.
      decoder_channels: width of the decoder at full resolution; None: `channels`.
      num_res_blocks: blocks per level in the encoder; the decoder has one more.
      attention_levels: levels with attention after every block.
      middle_attention: whether the lowest resolution has attention.
      quant_conv: whether 1x1 convolutions surround the latent (SD and the paper's VAEs have
        them, SD3.5 and FLUX do not).
      groups: groups of every GroupNorm; must divide every level's width.
      image_channels: channels of the images.
      dtype: the type of the convolutions; norms and softmax are float32.
      remat: the policy of the blocks and attentions, one of `remat.POLICIES`.
      stripes: the most stripes per image, see models/stripes.py; results are the same.
    """

    channels: int
    multipliers: tuple[int, ...]
    latent_channels: int
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    quant_conv: bool = True
    groups: int = 32
    image_channels: int = 3
    patchify: bool = False
    decoder_channels: int | None = None
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    stripes: int = 1

    last_layer = "decoder/conv_out/kernel"
    last_encoder_layer = "encoder/conv_out/kernel"

    @property
    def factor(self) -> int:
        """Down-sampling factor f between image and latent."""
        return 2 ** (len(self.multipliers) - 1 + self.patchify)

    @property
    def inner_channels(self) -> int:
        """The latent's channels as encoder and decoder see them."""
        return self.latent_channels // 4 if self.patchify else self.latent_channels

    def setup(self):
        shared = dict(
            multipliers=self.multipliers,
            num_res_blocks=self.num_res_blocks,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            groups=self.groups,
            dtype=self.dtype,
            remat=self.remat,
            stripes=self.stripes,
        )
        c, conv = self.inner_channels, conv_of(self)
        decoder_channels = self.decoder_channels or self.channels
        self.encoder = Encoder(self.channels, latent_channels=c, **shared)
        self.decoder = Decoder(decoder_channels, image_channels=self.image_channels, **shared)
        if self.quant_conv:
            self.quant = conv(2 * c, 2 * c, 1)
            self.post_quant = conv(c, c, 1)

    def encode(self, images: jax.Array) -> Gaussian:
        """Images (B, H, W, 3) in [-1, 1] -> posterior over (B, H / f, W / f, c).

        Raises:
          TypeError, UserError: images of another type or shape (see `inputs.check_images`).
        """
        check_images(images, self.image_channels, self.factor)
        moments = self.encoder(images)
        posterior = Gaussian.from_moments(self.quant(moments) if self.quant_conv else moments)
        return jax.tree.map(unshuffle, posterior) if self.patchify else posterior

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3), about [-1, 1].

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        check_latents(latents, self.latent_channels)
        latents = shuffle(latents) if self.patchify else latents
        latents = self.post_quant(latents) if self.quant_conv else latents
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[Gaussian, jax.Array]:
        """Posterior and reconstruction of images, with standard normal noise (B, h, w, c)."""
        posterior = self.encode(images)
        return posterior, self.decode(posterior.sample(noise))


def _check(vae: AutoencoderKL, _: Section, path: str) -> None:
    levels = len(vae.multipliers)
    for channels in (vae.channels, vae.decoder_channels or vae.channels):
        for multiplier in vae.multipliers:
            width = channels * multiplier
            if width % vae.groups:
                raise UserError(
                    f"{path}.groups is {vae.groups}, which does not divide the level of "
                    f"{width} channels"
                )
    if vae.patchify and vae.latent_channels % 4:
        raise UserError(
            f"{path}.latent_channels is {vae.latent_channels}, but with {path}.patchify it is four "
            "times the channels of the networks: use a multiple of 4"
        )
    for level in vae.attention_levels:
        if not 0 <= level < levels:
            raise UserError(
                f"{path}.attention_levels has {level}: levels run from 0 to {levels - 1}"
            )


FAMILY = Family(
    AutoencoderKL,
    options={
        "channels": Width,
        "multipliers": each(whole(1, 64), 1, 8),  # one per level
        "latent_channels": whole(1, 4096),
        "num_res_blocks": whole(1, 16),
        "attention_levels": each(whole(0, 7), 0, 8),
        "middle_attention": bool,
        "quant_conv": bool,
        "groups": Width,
        "patchify": bool,
        "decoder_channels": Width,
    },
    presets=VAE_CONFIGS,
    check=_check,
)
