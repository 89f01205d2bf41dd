r"""REPA at 512 x 512 on SD-VAE (f8d4): SiT-XL/2 on cached latents, 1,024 tokens.

    python -m repae_jax encode --config configs/imagenet512_repa_sdvae.py:images \
        --output data/sdvae_512 --images
    python -m repae_jax train --config configs/imagenet512_repa_sdvae.py --workdir runs/sdvae_512

DINOv2-B sees 448 x 448 pixels, 32 x 32 patches as the SiT does. Hyper-parameters are those of
REPA's 512 x 512 recipe. The argument "images" names the images to encode, any other a recipe.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repa"):
    config = imagenet256()
    config.name = "imagenet512_repa_sdvae"
    config.data.resolution = 512
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.backbone.arch = "SiT-XL/2"
    if recipe == "images":
        return apply_recipe(config, "repa")
    config.data.update(source="latents", path="data/sdvae_512")
    return apply_recipe(config, recipe)
