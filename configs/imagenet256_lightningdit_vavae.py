r"""LightningDiT-XL/1 on VA-VAE (f16d32) as published: 64 epochs on cached latents.

    python -m repae_jax encode --config configs/imagenet256_lightningdit_vavae.py:images \
        --output data/vavae --mirrored --dtype float16
    python -m repae_jax train --config configs/imagenet256_lightningdit_vavae.py \
        --workdir runs/lightningdit
    python -m repae_jax convert imagenet_train_256 data/vavae \
        --config configs/imagenet256_lightningdit_vavae.py    # the published latents, to train on

Needs in pretrained/: the VAE with its latent statistics, and for the recipe "repa" DINOv2-B. The
argument "images" names the images to encode, any other a recipe. The cache holds mean and standard
deviation of each image's latents, and each epoch draws new ones; the published run draws them once.
"""

from repae_jax.config import apply_recipe, lightningdit256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = lightningdit256()
    config.name = "imagenet256_lightningdit_vavae"
    config.tokenizer = tokenizer("f16d32", weights="pretrained/vavae/vavae-f16d32.pt")
    if recipe == "images":
        return apply_recipe(config, "vanilla")
    config.data.update(source="latents", path="data/vavae", flip=True)
    return apply_recipe(config, recipe)
