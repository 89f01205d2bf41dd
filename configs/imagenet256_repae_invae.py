"""REPA-E from IN-VAE (f16d32) with SiT-XL/1: 80 epochs of ImageNet.

    python -m repae_jax train --config configs/imagenet256_repae_invae.py --workdir runs/invae

Needs in pretrained/: the VAE with its latent statistics and discriminator, DINOv2-B, and LPIPS.
The argument picks a recipe, e.g. :repa for a frozen VAE. Published samples: SDE, 250 steps,
guidance 1.8 in [0, 0.825].
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_invae"
    config.tokenizer = tokenizer("f16d32", weights="pretrained/invae/invae-f16d32.pt")
    config.discriminator.weights = "pretrained/invae/invae-f16d32-discriminator-ckpt.pt"
    config.backbone.arch = "SiT-XL/1"
    return apply_recipe(config, recipe)
