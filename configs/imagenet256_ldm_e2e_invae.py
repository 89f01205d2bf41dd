r"""The second stage on E2E-IN-VAE (f16d32): SiT-XL/1 for 800 epochs on cached latents.

    python -m repae_jax encode --config configs/imagenet256_ldm_e2e_invae.py:images \
        --output data/e2e_invae --teachers --dtype float16
    python -m repae_jax train --config configs/imagenet256_ldm_e2e_invae.py --workdir runs/e2e_invae

The VAE is frozen, with the latent statistics that came with it. The argument "images" names the
images to encode, any other a recipe.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "repa"):
    config = imagenet256()
    config.name = "imagenet256_ldm_e2e_invae"
    config.tokenizer = tokenizer("f16d32", weights="pretrained/e2e-invae/e2e-invae-400k.pt")
    config.backbone.arch = "SiT-XL/1"
    config.run.update(steps=4_000_000, checkpoint_every=50_000)
    if recipe == "images":
        return apply_recipe(config, "repa")
    config.data.update(source="latents", path="data/e2e_invae")
    return apply_recipe(config, recipe)
