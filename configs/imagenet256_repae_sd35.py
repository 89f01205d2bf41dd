"""REPA-E from SD3.5's VAE (f8d16) with SiT-XL/2.

    python -m repae_jax train --config configs/imagenet256_repae_sd35.py --workdir runs/sd35

Needs the VAE (from the hub, or config.tokenizer.weights names a folder of diffusers'), and in
pretrained/ DINOv2-B and LPIPS. No discriminator is published for this VAE: a fresh one joins at
step 20,000, when the VAE has settled under the alignment loss (a choice, not a measured optimum).
The argument picks a recipe.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_sd35"
    config.tokenizer = tokenizer(
        "f8d16", weights="hf://stabilityai/stable-diffusion-3.5-medium/vae"
    )
    config.objective.discriminator_start = 20_000
    config.backbone.arch = "SiT-XL/2"
    return apply_recipe(config, recipe)
