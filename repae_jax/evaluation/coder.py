"""A VAE between bytes and latents, compiled."""

from collections.abc import Callable
from typing import Any

import jax

from repae_jax.models.vae import VAE
from repae_jax.sampling.pixels import to_float, to_uint8

Code = Callable[[Any, Any], jax.Array]


def make_coder(vae: VAE) -> tuple[Code, Code]:
    """Build `encode(params, images) -> latents` and `decode(params, latents) -> images`.

    Images are uint8 (B, H, W, 3), latents the posterior's means (B, h, w, c).
    """

    @jax.jit
    def encode(params, images):
        return vae.apply({"params": params}, to_float(images), method="encode").mean

    @jax.jit
    def decode(params, latents):
        return to_uint8(vae.apply({"params": params}, latents, method="decode"))

    return encode, decode
