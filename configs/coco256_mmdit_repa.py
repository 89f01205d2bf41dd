"""REPA's text-to-image experiment: an MMDiT on MS-COCO with SD-VAE (f8d4).

    python -m repae_jax train --config configs/coco256_mmdit_repa.py --workdir runs/coco

Needs MS-COCO 2014 in data/coco, as pictures with captions (docs/text-to-image.md), CLIP ViT-L/14
from the hub, and in pretrained/: the VAE with its latent statistics, and DINOv2-B. The argument
picks a recipe, e.g. :vanilla. Samples: 50 steps of an ODE, or 250 of the SDE.
"""

from repae_jax.config import apply_recipe, coco256, teacher, tokenizer


def get_config(recipe: str = "repa"):
    config = coco256()
    config.name = "coco256_mmdit"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.teachers.dinov2 = teacher("dinov2-b", weights="pretrained/dinov2_vitb14_pretrain.pth")
    return apply_recipe(config, recipe)
