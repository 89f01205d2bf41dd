"""The PatchGAN discriminator of the VAE's adversarial loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.batch_norm import BatchNorm
from repae_jax.models.convolution import conv_of
from repae_jax.models.family import Family, Section
from repae_jax.models.stripes import restripe


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping patch of the image (pix2pix, arXiv 1611.07004).

    4x4 convolutions with padding 1: `num_layers` of stride 2, which double the filters up to 8
    times `filters`, then two of stride 1. Only convolutions without a BatchNorm have biases.

    Attributes:
      num_layers: convolutions of stride 2.
      filters: channels after the first convolution.
      dtype: the type of the convolutions; BatchNorm's statistics and the logits are float32.
      stripes: the most stripes per image, see models/stripes.py; results are the same.
    """

    num_layers: int = 3
    filters: int = 64
    dtype: jnp.dtype = jnp.float32
    stripes: int = 1

    # See `models/discriminators.py`.
    generator_in_train_mode = True
    fakes_first = False
    waits = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> logits (B, h, w, 1), float32.

        With 3 layers h = H / 8 - 2. `train` normalizes by the batch's statistics and updates
        the running statistics where `batch_stats` is mutable.

        Raises:
          UserError: the images are too small for a single logit.
        """
        smallest = 3 * 2**self.num_layers
        if min(x.shape[1:3]) < smallest:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels are too small for a discriminator "
                f"of {self.num_layers} layers; use at least {smallest} pixels or fewer layers"
            )
        x, stripes = restripe(x, 1, self.stripes)
        x = self._conv(x, 0, self.filters, stride=2, bias=True, stripes=stripes)
        x = nn.leaky_relu(x, 0.2)
        for i in range(1, self.num_layers + 1):
            stride = 2 if i < self.num_layers else 1
            # Stride 1 takes a row off every image.
            x, stripes = restripe(x, stripes, self.stripes if stride == 2 else 1)
            features = self.filters * min(2**i, 8)
            x = self._conv(x, i, features, stride=stride, bias=False, stripes=stripes)
            x = BatchNorm(scale_init=_scale_init, dtype=self.dtype, name=f"norm_{i}")(
                x, train=train
            )
            x = nn.leaky_relu(x, 0.2)
        x = self._conv(x, self.num_layers + 1, 1, stride=1, bias=True)
        return x.astype(jnp.float32)

    def _conv(self, x, index, features, *, stride, bias, stripes=1):
        return conv_of(self)(
            x.shape[-1],
            features,
            4,
            stride=stride,
            padding=((1, 1), (1, 1)),
            bias=bias,
            kernel_init=initializers.normal(0.02),
            stripes=stripes,
            name=f"conv_{index}",
        )(x)


def _check(_: PatchDiscriminator, section: Section, path: str) -> None:
    if section["encoder_weights"]:
        raise UserError(
            f"{path}.encoder_weights is {section['encoder_weights']!r}, but a PatchGAN has no "
            f"encoder: leave it empty, or set {path}.family to 'dino'"
        )


FAMILY = Family(
    PatchDiscriminator,
    options={"filters": PatchDiscriminator.filters, "layers": PatchDiscriminator.num_layers},
    fields={"layers": "num_layers"},
    check=_check,
)
