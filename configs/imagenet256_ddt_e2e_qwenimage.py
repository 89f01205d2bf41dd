r"""DDT-XL/2 on E2E-Qwen-Image-VAE (f8d16): diffusion-bench's 80 epochs on cached latents.

    python -m repae_jax encode --config configs/imagenet256_ddt_e2e_qwenimage.py:images \
        --output data/e2e_qwenimage --dtype float16
    python -m repae_jax train --config configs/imagenet256_ddt_e2e_qwenimage.py \
        --workdir runs/ddt_qwenimage

Needs the VAE (from the hub, or config.tokenizer.weights names a folder of diffusers).
The argument "images" names the images to encode, any other a recipe; "repa" needs --teachers when
it encodes, and DINOv2-B in pretrained/. Published samples: 50 Euler steps, guidance 1.8 in
[0, 0.9].
"""

from repae_jax.config import apply_recipe, backbone, ddt256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = ddt256(latent_values=16 * 32**2)
    config.name = "imagenet256_ddt_e2e_qwenimage"
    config.tokenizer = tokenizer("qwenimage", weights="hf://REPA-E/e2e-qwenimage-vae")
    config.backbone = backbone("DDT-XL/2")
    if recipe == "images":
        return apply_recipe(config, "vanilla")
    config.data.update(source="latents", path="data/e2e_qwenimage")
    return apply_recipe(config, recipe)
