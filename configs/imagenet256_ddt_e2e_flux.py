r"""DDT-XL/2 on E2E-FLUX-VAE (f8d16): diffusion-bench's 80 epochs on cached latents.

    python -m repae_jax encode --config configs/imagenet256_ddt_e2e_flux.py:images \
        --output data/e2e_flux --dtype float16
    python -m repae_jax train --config configs/imagenet256_ddt_e2e_flux.py --workdir runs/ddt_flux

Needs the VAE (from the hub, or config.tokenizer.weights names a folder of diffusers).
The argument "images" names the images to encode, any other a recipe; "repa" needs --teachers when
it encodes, and DINOv2-B in pretrained/. Published samples: 50 Euler steps, guidance 1.8 in
[0, 0.9].
"""

from repae_jax.config import apply_recipe, backbone, ddt256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = ddt256(latent_values=16 * 32**2)
    config.name = "imagenet256_ddt_e2e_flux"
    config.tokenizer = tokenizer("f8d16", weights="hf://REPA-E/e2e-flux-vae")
    config.backbone = backbone("DDT-XL/2")
    if recipe == "images":
        return apply_recipe(config, "vanilla")
    config.data.update(source="latents", path="data/e2e_flux")
    return apply_recipe(config, recipe)
