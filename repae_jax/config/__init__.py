"""What a file in configs/ imports: `from repae_jax.config import apply_recipe, base, tokenizer`."""

from repae_jax.config.defaults import (
    NETWORKS,
    backbone,
    base,
    condition,
    discriminator,
    projector,
    teacher,
    text_encoder,
    tokenizer,
)
from repae_jax.config.published import (
    ddt256,
    dit256,
    imagenet256,
    jit256,
    lightningdit256,
    rae_decoder256,
)
from repae_jax.config.published_text import coco256, ddt_text256, fusedit256
from repae_jax.config.recipes import RECIPES, apply_recipe

__all__ = [
    "NETWORKS",
    "RECIPES",
    "apply_recipe",
    "backbone",
    "base",
    "coco256",
    "condition",
    "ddt256",
    "ddt_text256",
    "discriminator",
    "dit256",
    "fusedit256",
    "imagenet256",
    "jit256",
    "lightningdit256",
    "projector",
    "rae_decoder256",
    "teacher",
    "text_encoder",
    "tokenizer",
]
