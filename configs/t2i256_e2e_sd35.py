"""Text to image with E2E-SD3.5-VAE (f8d16): fuse-dit's DiT (2.66 B).

    python -m repae_jax train --config configs/t2i256_e2e_sd35.py --workdir runs/t2i_e2e_sd35

Needs tars of pictures with captions in data/blip3o, the VAE and gemma-2b (from the hub, or
config.tokenizer.weights and config.text_encoder.weights name folders). The argument picks a recipe;
"repa" needs a teacher. Published samples: 25 Euler steps, guidance 6.
"""

from repae_jax.config import apply_recipe, fusedit256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = fusedit256()
    config.name = "t2i256_e2e_sd35"
    config.tokenizer = tokenizer("f8d16", weights="hf://REPA-E/e2e-sd3.5-vae")
    return apply_recipe(config, recipe)
