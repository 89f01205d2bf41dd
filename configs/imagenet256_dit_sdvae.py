r"""DiT-XL/2 on SD-VAE (f8d4) as published: 7 million steps on cached latents.

    python -m repae_jax encode --config configs/imagenet256_dit_sdvae.py:images \
        --output data/sdvae --mirrored --dtype float16
    python -m repae_jax train --config configs/imagenet256_dit_sdvae.py --workdir runs/dit
    python -m repae_jax convert DiT-XL-2-256x256.pt runs/dit_published \
        --config configs/imagenet256_dit_sdvae.py        # the published weights, as a run

Latents are normalized by the VAE's statistics; the published run multiplies them by 0.18215, which
a converted checkpoint keeps. Needs in pretrained/: the VAE, and for the recipe "repa" DINOv2-B. The
argument "images" names the images to encode, any other a recipe.
"""

from repae_jax.config import apply_recipe, dit256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = dit256()
    config.name = "imagenet256_dit_sdvae"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    if recipe == "images":
        return apply_recipe(config, "vanilla")
    config.data.update(source="latents", path="data/sdvae", flip=True)
    return apply_recipe(config, recipe)
