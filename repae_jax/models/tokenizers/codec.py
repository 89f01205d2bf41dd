"""A tokenizer between bytes and latents, compiled."""

from collections.abc import Callable
from typing import Any

import jax

from repae_jax.models.tokenizers import base
from repae_jax.models.tokenizers.base import Tokenizer
from repae_jax.utils.finite import finite_rows
from repae_jax.utils.images import to_float, to_uint8

Encode = Callable[[Any, Any], jax.Array]
Decode = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


def make_coder(tokenizer: Tokenizer) -> tuple[Encode, Decode]:
    """Build `encode(variables, images) -> latents`, `decode(variables, latents) -> images, finite`.

    Images are uint8 (B, H, W, 3), latents the distribution's means (B, h, w, c), and `finite` (B,)
    bool says which images have pixels that were neither NaN nor infinite.
    """

    @jax.jit
    def encode(variables, images):
        return base.encode(tokenizer, variables, to_float(images)).mean

    @jax.jit
    def decode(variables, latents):
        images = base.decode(tokenizer, variables, latents)
        return to_uint8(images), finite_rows(images)

    return encode, decode
