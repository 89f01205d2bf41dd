r"""LightningDiT-XL/1 on E2E-VA-VAE (f16d32): 64 epochs on cached latents.

    python -m repae_jax encode --config configs/imagenet256_lightningdit_e2e_vavae.py:images \
        --output data/e2e_vavae --mirrored --dtype float16
    python -m repae_jax train --config configs/imagenet256_lightningdit_e2e_vavae.py \
        --workdir runs/lightningdit_e2e

Needs in pretrained/: the VAE with its latent statistics, and for the recipe "repa" DINOv2-B. The
argument "images" names the images to encode, any other a recipe.
"""

from repae_jax.config import apply_recipe, lightningdit256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = lightningdit256()
    config.name = "imagenet256_lightningdit_e2e_vavae"
    config.tokenizer = tokenizer("f16d32", weights="pretrained/e2e-vavae/e2e-vavae-400k.pt")
    if recipe == "images":
        return apply_recipe(config, "vanilla")
    config.data.update(source="latents", path="data/e2e_vavae", flip=True)
    return apply_recipe(config, recipe)
