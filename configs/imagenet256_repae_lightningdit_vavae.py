"""REPA-E from VA-VAE (f16d32) with LightningDiT-XL/1: 80 epochs of ImageNet.

    python -m repae_jax train --config configs/imagenet256_repae_lightningdit_vavae.py \
        --workdir runs/repae_lightningdit

Needs in pretrained/: the VAE with its latent statistics and discriminator, DINOv2-B, and LPIPS.
The argument picks a recipe, e.g. :repa for a frozen VAE. Optimizers and coefficients are REPA-E's;
the loss of the velocity and the times are LightningDiT's. Nobody has published this combination.
"""

from repae_jax.config import apply_recipe, backbone, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_lightningdit_vavae"
    config.tokenizer = tokenizer("f16d32", weights="pretrained/vavae/vavae-f16d32.pt")
    config.discriminator.weights = "pretrained/vavae/vavae-f16d32-discriminator-ckpt.pt"
    config.backbone = backbone("LightningDiT-XL/1")
    config.objective.cosine_weight = 1.0
    config.time.weighting = "lognormal"
    return apply_recipe(config, recipe)
