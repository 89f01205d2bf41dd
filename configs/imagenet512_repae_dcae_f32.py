"""REPA-E at 512 x 512 from DC-AE (f32c32) with SiT-XL/1: 256 tokens.

    python -m repae_jax train --config configs/imagenet512_repae_dcae_f32.py --workdir runs/dcae

DC-AE is deterministic, so the VAE's loss has no KL term; the running statistics of its decoder's
BatchNorm stay as published. DINOv2-B sees 224 x 224 pixels, 16 x 16 patches as the SiT does. Needs
the autoencoder (from the hub, or config.tokenizer.weights names a folder of diffusers'), and in
pretrained/ DINOv2-B and LPIPS. No discriminator is published for it: a fresh one joins at step
20,000 (a choice, not a measured optimum). The argument picks a recipe.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repae"):
    config = imagenet256()
    config.name = "imagenet512_repae_dcae_f32"
    config.data.resolution = 512
    weights = "hf://mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"
    config.tokenizer = tokenizer("f32c32", weights=weights)
    config.backbone.arch = "SiT-XL/1"
    config.teachers.dinov2.token_pixels = 32
    config.objective.discriminator_start = 20_000
    return apply_recipe(config, recipe)
