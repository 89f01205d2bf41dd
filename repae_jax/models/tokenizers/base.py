"""The contract of a tokenizer, and `encode` and `decode` as functions of its variables."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from repae_jax.models.tokenizers.distributions import LatentDistribution


class Tokenizer(Protocol):
    """A Flax module between images and latents.

    A run may train the collection "params". It never trains other collections, such as "constants"
    for fixed weights, and keeps them in `state.frozen["tokenizer"]`.

    Attributes:
      factor: f, the down-sampling factor: pixels along a side of a latent position.
      latent_channels: c.
      image_channels: channels of the images; 3 in a run.
      dtype: the type of its matrix products and convolutions.
      remat: the activations that gradients recompute, one of `remat.POLICIES`.

    A tokenizer may have `last_layer` and `last_encoder_layer`, the paths below "params" of the
    kernels of the last layers of decoder and encoder, such as "decoder/conv_out/kernel". Weights
    that follow the gradients at these layers (objectives/adaptive.py) need them.

    A convolutional tokenizer may have a field `stripes`, the most stripes per image
    (models/stripes.py), which a run then sets; its results are the same for every number.

    A tokenizer whose latents are the images has `identity`, which is True: see `is_identity`. One
    whose latent statistics differ from position to position has `statistics_by_position`, which is
    True: see `statistics_shape`. One that maps an image to a single latent has `deterministic`,
    which is True. One whose encoder no run trains has `frozen_encoder`, which is True.
    """

    factor: int
    latent_channels: int
    image_channels: int
    dtype: Any
    remat: str

    def encode(self, images: jax.Array) -> LatentDistribution:
        """Images (B, H, W, 3) in [-1, 1] -> distribution of latents (B, H / f, W / f, c)."""
        ...

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3), float32."""
        ...

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[LatentDistribution, jax.Array]:
        """Distribution and reconstruction; `init` calls it, so it uses every parameter."""
        ...


def is_identity(tokenizer: Tokenizer) -> bool:
    """Whether the latents are the images themselves.

    Then the tokenizer has no parameters, LatentNorm is the identity as well, and pixels are rounded
    to bytes, so that uint8 images come back as they were.
    """
    return getattr(tokenizer, "identity", False)


def statistics_shape(tokenizer: Tokenizer, latent_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of the statistics of latents (h, w, c): (c,), or of each position (h, w, c)."""
    by_position = getattr(tokenizer, "statistics_by_position", False)
    return tuple(latent_shape) if by_position else tuple(latent_shape[-1:])


def encode(
    tokenizer: Tokenizer, variables: Mapping[str, Any], images: jax.Array
) -> LatentDistribution:
    """The distribution of the latents of images (B, H, W, 3) in [-1, 1].

    Args:
      tokenizer: the module.
      variables: its collections: {"params": ..., ...}.
      images: float (B, H, W, 3) in [-1, 1].
    """
    return tokenizer.apply(variables, images, method="encode")


def decode(tokenizer: Tokenizer, variables: Mapping[str, Any], latents: jax.Array) -> jax.Array:
    """Decode unnormalized latents (B, h, w, c) to images (B, H, W, 3), about [-1, 1]."""
    return tokenizer.apply(variables, latents, method="decode")


def variable_shapes(tokenizer: Tokenizer) -> dict[str, Any]:
    """The shapes and types of all of a tokenizer's collections; allocates nothing."""
    images = jnp.zeros((1, tokenizer.factor, tokenizer.factor, tokenizer.image_channels))
    noise = jnp.zeros((1, 1, 1, tokenizer.latent_channels))
    return jax.eval_shape(tokenizer.init, jax.random.key(0), images, noise)


def parameter_shapes(tokenizer: Tokenizer) -> dict[str, Any]:
    """The shapes and types of a tokenizer's parameters; allocates nothing."""
    return variable_shapes(tokenizer).get("params", {})
