"""REPA-E from SD-VAE (f8d4) with SiT-XL/2: 80 epochs of ImageNet, the paper's main recipe.

    python -m repae_jax train --config configs/imagenet256_repae_sdvae.py --workdir runs/sdvae

Needs in pretrained/: the VAE with its latent statistics and discriminator, DINOv2-B, and LPIPS.
The argument picks a recipe, e.g. :repa for a frozen VAE. Published samples: SDE, 250 steps,
guidance 2.2 in [0, 0.65].
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_sdvae"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    config.backbone.arch = "SiT-XL/2"
    return apply_recipe(config, recipe)
