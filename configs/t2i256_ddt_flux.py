"""Text to image with FLUX.1's VAE (f8d16): diffusion-bench's DDT.

    python -m repae_jax train --config configs/t2i256_ddt_flux.py --workdir runs/t2i_ddt_flux

Needs tars of pictures with captions in data/blip3o, the VAE and Qwen3-0.6B (from the hub, or
config.tokenizer.weights and config.text_encoder.weights name folders). The argument picks a recipe;
"repa" needs a teacher. Published samples: 50 Euler steps, guidance 6.
"""

from repae_jax.config import apply_recipe, ddt_text256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = ddt_text256(latent_values=16 * 32**2)
    config.name = "t2i256_ddt_flux"
    config.tokenizer = tokenizer("f8d16", weights="hf://black-forest-labs/FLUX.1-dev/vae")
    return apply_recipe(config, recipe)
