"""REG on SD-VAE (f8d4) with SiT-XL/2: the teacher's class token is denoised beside the latents.

    python -m repae_jax train --config configs/imagenet256_reg_sdvae.py --workdir runs/reg

REPA with DINOv2's class token as one more noisy token (arXiv 2507.01467), the tokenizer frozen. Its
authors sample with --guidance-scale 2.3 --guidance-high 0.85. Needs in pretrained/: the VAE with
its latent statistics, and DINOv2-B. The argument picks a recipe, e.g. :repae, which tunes the VAE
as well and needs LPIPS and the discriminator too.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repa"):
    config = imagenet256()
    config.name = "imagenet256_reg_sdvae"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    config.backbone.arch = "SiT-XL/2"
    config.backbone.class_token_dim = 768
    config.objective.class_token_weight = 0.03
    return apply_recipe(config, recipe)
