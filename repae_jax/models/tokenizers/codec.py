"""A VAE between bytes and latents, compiled."""

from collections.abc import Callable
from typing import Any

import jax

from repae_jax.models.tokenizers.vae import VAE
from repae_jax.utils.finite import finite_rows
from repae_jax.utils.images import to_float, to_uint8

Encode = Callable[[Any, Any], jax.Array]
Decode = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


def make_coder(vae: VAE) -> tuple[Encode, Decode]:
    """Build `encode(params, images) -> latents` and `decode(params, latents) -> images, finite`.

    Images are uint8 (B, H, W, 3), latents the posterior's means (B, h, w, c), and `finite` (B,)
    bool says which images have pixels that were neither NaN nor infinite.
    """

    @jax.jit
    def encode(params, images):
        return vae.apply({"params": params}, to_float(images), method="encode").mean

    @jax.jit
    def decode(params, latents):
        images = vae.apply({"params": params}, latents, method="decode")
        return to_uint8(images), finite_rows(images)

    return encode, decode
