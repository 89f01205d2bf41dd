"""REPA-E with captions: SD-VAE (f8d4) and a text-to-image DDT train in one step.

    python -m repae_jax train --config configs/t2i256_repae_sdvae.py --workdir runs/t2i_repae

Needs tars of pictures with captions in data/blip3o, Qwen3-0.6B from the hub, and in pretrained/:
the VAE with its latent statistics and discriminator, DINOv2-B, and LPIPS. The argument picks a
recipe, e.g. :repa for a frozen VAE.
"""

from repae_jax.config import apply_recipe, ddt_text256, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = ddt_text256(latent_values=4 * 32**2)
    config.name = "t2i256_repae_sdvae"
    config.batch_size = 256
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    of_images = imagenet256()
    config.teachers, config.lpips = of_images.teachers, of_images.lpips
    config.objective.posterior = "sample"  # the tokenizer's L_REG needs it
    config.optimizer.tokenizer.learning_rate = 1e-4
    return apply_recipe(config, recipe)
