"""REPA-E from FLUX.2's VAE (32 channels, patchified to 128) with SiT-XL/1: 256 tokens.

    python -m repae_jax train --config configs/imagenet256_repae_flux2.py --workdir runs/flux2

Needs the VAE (from the hub, or config.tokenizer.weights names a folder of diffusers' or its
authors' ae.safetensors), and in pretrained/ DINOv2-B and LPIPS. No discriminator is published for
this VAE: a fresh one joins at step 20,000, when the VAE has settled under the alignment loss (a
choice, not a measured optimum). The argument picks a recipe.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet256_repae_flux2"
    config.tokenizer = tokenizer("flux2", weights="hf://black-forest-labs/FLUX.2-dev/vae")
    config.objective.discriminator_start = 20_000
    config.backbone.arch = "SiT-XL/1"
    return apply_recipe(config, recipe)
