r"""REPA-E from SD-VAE (f8d4) with DiT-XL/2: 80 epochs of ImageNet.

    python -m repae_jax train --config configs/imagenet256_repae_dit_sdvae.py \
        --workdir runs/repae_dit

Needs in pretrained/: the VAE with its latent statistics and discriminator, DINOv2-B, and LPIPS.
The argument picks a recipe, e.g. :repa for a frozen VAE. Optimizers and coefficients are REPA-E's;
the diffusion loss is DiT's, without a learned variance. Nobody has published this combination.
"""

from repae_jax.config import apply_recipe, backbone, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_dit_sdvae"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    config.backbone = backbone("DiT-XL/2", learn_sigma=False)
    config.objective.interpolant = "ddpm"
    config.sampling.update(method="ddim", steps=250)
    return apply_recipe(config, recipe)
