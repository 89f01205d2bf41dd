"""The contract of a tokenizer, and its two directions as functions of its variables."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from repae_jax.models.tokenizers.distributions import LatentDistribution


class Tokenizer(Protocol):
    """A Flax module between images and latents.

    Its collection "params" may be trained. Others, such as "constants" for weights that stay as
    they are, never are; a run keeps them in `state.frozen["tokenizer"]`.

    Attributes:
      factor: f, pixels a side for one latent position.
      latent_channels: c.
      image_channels: 3 in a run.
      dtype: of its matrix products and convolutions.
      remat: what is recomputed for gradients, one of `remat.POLICIES`.
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
        """Latents (B, h, w, c), not normalised -> images (B, h * f, w * f, 3), float32."""
        ...

    def __call__(self, images: jax.Array, noise: jax.Array) -> tuple[LatentDistribution, jax.Array]:
        """Distribution and reconstruction; touches every parameter, for `init`."""
        ...


def encode(
    tokenizer: Tokenizer, variables: Mapping[str, Any], images: jax.Array
) -> LatentDistribution:
    """The distribution of the latents of images (B, H, W, 3) in [-1, 1].

    Args:
      tokenizer: the module.
      variables: {"params": ..., and its other collections}.
      images: as above.
    """
    return tokenizer.apply(variables, images, method="encode")


def decode(tokenizer: Tokenizer, variables: Mapping[str, Any], latents: jax.Array) -> jax.Array:
    """Images (B, H, W, 3), about [-1, 1], of latents (B, h, w, c) that are not normalised."""
    return tokenizer.apply(variables, latents, method="decode")


def variable_shapes(tokenizer: Tokenizer) -> dict[str, Any]:
    """The shapes and types of all collections; allocates nothing."""
    images = jnp.zeros((1, tokenizer.factor, tokenizer.factor, tokenizer.image_channels))
    noise = jnp.zeros((1, 1, 1, tokenizer.latent_channels))
    return jax.eval_shape(tokenizer.init, jax.random.key(0), images, noise)


def parameter_shapes(tokenizer: Tokenizer) -> dict[str, Any]:
    """Those of the parameters."""
    return variable_shapes(tokenizer)["params"]
