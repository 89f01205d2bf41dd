"""The VAE of Qwen-Image (arXiv 2508.02324) on images.

It is the causal 3-D VAE of Wan 2.1 (arXiv 2503.20314), here on videos of one frame.

An image is a first frame: every causal convolution pads the two frames before it with zeros. So
only the last temporal tap of a 3-D kernel acts, as a 2-D convolution, and convolutions over time
alone never act. The parameters still hold the complete kernels, so that loading and saving keep a
checkpoint unchanged; taps that do not act have zero gradients.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.convolution import conv, convolve, torch_uniform
from repae_jax.models.family import Family, Section
from repae_jax.models.inputs import check_images, check_latents
from repae_jax.models.layers import attend
from repae_jax.models.remat import rematerialize
from repae_jax.models.stripes import restripe, unfold
from repae_jax.models.tokenizers.distributions import Gaussian
from repae_jax.models.upsample import UpsampleConv
from repae_jax.utils.schema import Width, each, whole

# Dimensions of the published VAE; the end-to-end tuned VAEs have the same.
QWEN_VAE_CONFIGS = {
    "qwenimage": dict(
        base_dim=96,
        latent_channels=16,
        multipliers=(1, 2, 4, 4),
        temporal_downsample=(False, True, True),
    ),
}


class CausalConv(nn.Module):
    """A causal k x k x k convolution over time, height and width, applied to a first frame.

    The parameter "kernel" is (k, k, k, in, out), time first; only kernel[-1] acts. It is
    initialized like PyTorch's 3-D convolution.
    """

    features: int
    kernel: int
    dtype: jnp.dtype
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        kernel, bias = _kernel_and_bias(self, (self.kernel,) * 3, x.shape[-1], self.features)
        x, kernel = x.astype(self.dtype), kernel[-1].astype(self.dtype)
        padding = ((self.kernel // 2, self.kernel // 2),) * 2
        h = convolve(x, kernel, 1, padding, self.stripes)
        return h + bias.astype(self.dtype)


class TimeConv(nn.Module):
    """The parameters of a convolution over three frames, which does not act on a single frame."""

    in_features: int
    features: int

    @nn.compact
    def __call__(self) -> None:
        _kernel_and_bias(self, (3, 1, 1), self.in_features, self.features)


def _kernel_and_bias(module, kernel, in_features, features):
    init = torch_uniform(in_features * math.prod(kernel))
    return (
        module.param("kernel", init, (*kernel, in_features, features)),
        module.param("bias", init, (features,)),
    )


class RMSNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(C) * scale over the channels, then SiLU if `activate`; in float32.

    Below the bound the divisor is constant, so the gradient is finite at x = 0.
    """

    dtype: jnp.dtype
    activate: bool = True
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        scale = self.param("scale", initializers.ones, (channels,), jnp.float32)
        h = x.astype(jnp.float32)
        square = jnp.square(h).sum(axis=-1, keepdims=True)
        small = square < self.epsilon**2
        # the inner `where` keeps rsqrt(0) out of the gradient, too
        inverse = jnp.where(small, 1.0 / self.epsilon, jax.lax.rsqrt(jnp.where(small, 1.0, square)))
        h = h * inverse * (math.sqrt(channels) * scale)
        return (nn.silu(h) if self.activate else h).astype(self.dtype)


class ResBlock(nn.Module):
    """Norm-SiLU-conv twice, with a 1x1x1 shortcut where the width changes."""

    features: int
    dtype: jnp.dtype
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        h = RMSNorm(self.dtype, name="norm1")(x)
        h = CausalConv(self.features, 3, self.dtype, self.stripes, name="conv1")(h)
        h = RMSNorm(self.dtype, name="norm2")(h)
        h = CausalConv(self.features, 3, self.dtype, self.stripes, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = CausalConv(self.features, 1, self.dtype, self.stripes, name="shortcut")(x)
        return x + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a frame; softmax in float32."""

    dtype: jnp.dtype
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        h = RMSNorm(self.dtype, activate=False, name="norm")(x)
        h = conv(channels, 3 * channels, 1, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(h.reshape(len(x) // self.stripes, -1, 1, 3 * channels), 3, axis=-1)
        h = attend(q, k, v).reshape(x.shape)
        return x + conv(channels, channels, 1, dtype=self.dtype, name="proj")(h)


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if `attention`."""

    features: int
    num_blocks: int
    attention: bool
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = rematerialize(ResBlock, self.remat)
        attention = rematerialize(SpatialAttention, self.remat)
        for i in range(self.num_blocks):
            x = block(self.features, self.dtype, self.stripes, name=f"block_{i}")(x)
            if self.attention:
                x = attention(self.dtype, self.stripes, name=f"attn_{i}")(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = rematerialize(ResBlock, self.remat)
        attention = rematerialize(SpatialAttention, self.remat)
        x = block(x.shape[-1], self.dtype, self.stripes, name="block_1")(x)
        x = attention(self.dtype, self.stripes, name="attn_1")(x)
        return block(x.shape[-1], self.dtype, self.stripes, name="block_2")(x)


class Encoder(nn.Module):
    """Image (B, H, W, 3) -> (B, H / f, W / f, 2 * latent_channels)."""

    base_dim: int
    latent_channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    temporal_downsample: tuple[bool, ...]
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, stripes = restripe(x, 1, self.stripes)
        h = CausalConv(self.base_dim, 3, self.dtype, stripes, name="conv_in")(x)
        for i, multiplier in enumerate(self.multipliers):
            width = self.base_dim * multiplier
            attention = i in self.attention_levels
            level = Level(
                width, self.num_res_blocks, attention, self.dtype, self.remat, stripes,
                name=f"down_{i}",
            )  # fmt: skip
            h = level(h)
            if i + 1 < len(self.multipliers):
                # One row and column of zeros at the bottom and right only.
                h = conv(
                    width,
                    width,
                    3,
                    stride=2,
                    padding=((0, 1), (0, 1)),
                    dtype=self.dtype,
                    stripes=stripes,
                    name=f"downsample_{i}",
                )(h)
                h, stripes = restripe(h, stripes, self.stripes)
                if self.temporal_downsample[i]:
                    TimeConv(width, width, name=f"time_conv_{i}")()
        h = Middle(self.dtype, self.remat, stripes, name="mid")(h)
        h = RMSNorm(self.dtype, name="norm_out")(h)
        h = CausalConv(2 * self.latent_channels, 3, self.dtype, stripes, name="conv_out")(h)
        return unfold(h, stripes)


class Decoder(nn.Module):
    """Latent (B, h, w, c) -> image (B, h * f, w * f, image_channels)."""

    base_dim: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    image_channels: int
    dtype: jnp.dtype
    remat: str
    stripes: int = 1

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        width = self.base_dim * self.multipliers[-1]
        z, stripes = restripe(z, 1, self.stripes)
        h = CausalConv(width, 3, self.dtype, stripes, name="conv_in")(z)
        h = Middle(self.dtype, self.remat, stripes, name="mid")(h)
        for i in reversed(range(len(self.multipliers))):
            width = self.base_dim * self.multipliers[i]
            level = Level(
                width, self.num_res_blocks + 1, False, self.dtype, self.remat, stripes,
                name=f"up_{i}",
            )  # fmt: skip
            h = level(h)
            if i > 0:
                # Level i up-samples what level i - 1 of the encoder down-sampled.
                if self.temporal_downsample[i - 1]:
                    TimeConv(width, 2 * width, name=f"time_conv_{i}")()
                upsample = UpsampleConv(
                    width, width // 2, self.dtype, stripes, name=f"upsample_{i}"
                )
                h, stripes = restripe(upsample(h), stripes, self.stripes)
        h = RMSNorm(self.dtype, name="norm_out")(h)
        h = CausalConv(self.image_channels, 3, self.dtype, stripes, name="conv_out")(h)
        return unfold(h, stripes)


class AutoencoderKLQwenImage(nn.Module):
    """Qwen-Image's VAE for images, with the interface of `autoencoder_kl.AutoencoderKL`.

    It computes the same function of an image as diffusers' class of this name does of one frame.
    Products are computed in `dtype`, normalization and softmax in float32. Weights are initialized
    as in PyTorch.

    Attributes:
      base_dim: width at full resolution.
      latent_channels: c, the channels of the latent (`z_dim` in diffusers).
      multipliers: width of each level in units of `base_dim`; the down-sampling factor is
        2 ** (levels - 1).
      num_res_blocks: blocks per level in the encoder; the decoder has one more.
      attn_scales: scales (1.0 = full resolution, 0.5 = the next, ...) of the encoder's levels
        with attention after every block; the decoder's levels have no attention, as in diffusers.
      temporal_downsample: for each level but the last, whether it also halves a video's frame
        rate; such a level has further parameters, which do not act on images.
      image_channels: channels of the images on both sides.
      dtype: the type of the products.
      remat: the policy of the blocks and attentions, one of `remat.POLICIES`.
      stripes: the most stripes per image, see models/stripes.py; results are the same.

    Raises:
      UserError: on the first call, if the length of `temporal_downsample` is not levels - 1.
    """

    base_dim: int = 96
    latent_channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    image_channels: int = 3
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    stripes: int = 1

    last_layer = "decoder/conv_out/kernel"
    last_encoder_layer = "encoder/conv_out/kernel"

    @property
    def factor(self) -> int:
        """Down-sampling factor f between image and latent."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The encoder's levels with attention (0 = full resolution)."""
        return tuple(i for i in range(len(self.multipliers)) if 0.5**i in self.attn_scales)

    def setup(self):
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise UserError(
                f"temporal_downsample {self.temporal_downsample} has "
                f"{len(self.temporal_downsample)} entries for the {len(self.multipliers)} levels "
                f"of multipliers {self.multipliers}: give one for each level but the last"
            )
        shared = dict(
            base_dim=self.base_dim,
            multipliers=self.multipliers,
            num_res_blocks=self.num_res_blocks,
            temporal_downsample=self.temporal_downsample,
            dtype=self.dtype,
            remat=self.remat,
            stripes=self.stripes,
        )
        self.encoder = Encoder(
            latent_channels=self.latent_channels, attention_levels=self.attention_levels, **shared
        )
        self.decoder = Decoder(image_channels=self.image_channels, **shared)
        self.quant = CausalConv(2 * self.latent_channels, 1, self.dtype)
        self.post_quant = CausalConv(self.latent_channels, 1, self.dtype)

    def encode(self, images: jax.Array) -> Gaussian:
        """Images (B, H, W, 3) in [-1, 1] -> posterior over (B, H / f, W / f, c).

        Raises:
          TypeError, UserError: images of another type or shape (see `inputs.check_images`).
        """
        check_images(images, self.image_channels, self.factor)
        return Gaussian.from_moments(self.quant(self.encoder(images)))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3) in [-1, 1].

        Images are clamped as in diffusers, so a pixel beyond the range has no gradient.

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        check_latents(latents, self.latent_channels)
        images = self.decoder(self.post_quant(latents))
        return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[Gaussian, jax.Array]:
        """Posterior and reconstruction of images, with standard normal noise (B, h, w, c)."""
        posterior = self.encode(images)
        return posterior, self.decode(posterior.sample(noise))


def _check(vae: AutoencoderKLQwenImage, _: Section, path: str) -> None:
    levels = len(vae.multipliers)
    if len(vae.temporal_downsample) != levels - 1:
        raise UserError(
            f"{path}.temporal_downsample is {vae.temporal_downsample}: the {levels} "
            f"levels of {path}.multipliers need {levels - 1} entries"
        )


FAMILY = Family(
    AutoencoderKLQwenImage,
    options={
        "channels": Width,
        "multipliers": each(whole(1, 64), 1, 8),  # one per level
        "latent_channels": whole(1, 4096),
        "num_res_blocks": whole(1, 16),
        "temporal_downsample": each(bool, 0, 8),
    },
    fields={"channels": "base_dim"},
    presets=QWEN_VAE_CONFIGS,
    check=_check,
)
