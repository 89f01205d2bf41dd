"""Compiled functions between uint8 images and latents."""

from collections.abc import Callable
from typing import Any

import jax

from repae_jax.models.tokenizers import base
from repae_jax.models.tokenizers.base import Tokenizer
from repae_jax.utils.finite import finite_rows
from repae_jax.utils.images import to_float, to_uint8

Encode = Callable[[Any, Any], jax.Array]
Decode = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


def make_codec(tokenizer: Tokenizer) -> tuple[Encode, Decode]:
    """Build `encode(variables, images) -> latents`, `decode(variables, latents) -> images, finite`.

    Images are uint8 (B, H, W, 3); latents are the means of the distributions, (B, h, w, c);
    `finite`, (B,) bool, marks the images whose decoded pixels are all finite.
    """

    @jax.jit
    def encode(variables, images):
        return base.encode(tokenizer, variables, to_float(images)).mean

    @jax.jit
    def decode(variables, latents):
        images = base.decode(tokenizer, variables, latents)
        return to_uint8(images, rounded=base.is_identity(tokenizer)), finite_rows(images)

    return encode, decode
