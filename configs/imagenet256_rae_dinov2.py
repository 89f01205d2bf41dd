r"""DiT^DH-XL on the latents of RAE's DINOv2-B (16 x 16 x 768), as published (arXiv 2510.11690).

    python -m repae_jax train --config configs/imagenet256_rae_dinov2.py --workdir runs/rae
    python -m repae_jax train --config configs/imagenet256_rae_dinov2.py:vae --workdir runs/rae_vae

The argument picks a recipe; "vae" is the first stage, which trains the decoder from scratch on a
frozen DINOv2-B with registers, with LPIPS and a discriminator on DINO's features. As its authors'
code, it resizes a picture's shorter side to 384 pixels, bicubically as torchvision does, and trains
on random windows of 256, never mirrored. Needs the tokenizer (from the hub, or
config.tokenizer.weights names a folder of diffusers' or the authors' model.pt); "vae" needs
DINOv2-B with registers, DINO-S/8 and LPIPS, "repa" DINOv2-B. Latents are 400 KB an image in half
precision, so the encoder runs in the step. Published samples: 49 Euler steps from t = 1 to 0.001,
before the shift.
"""

from repae_jax.config import apply_recipe, backbone, ddt256, rae_decoder256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = ddt256(latent_values=768 * 16**2)
    config.name = "imagenet256_rae_dinov2"
    weights = "hf://nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08"
    config.tokenizer = tokenizer("rae-dinov2-base", weights=weights)
    config.backbone = backbone("DiTDH-XL/1")
    config.data.flip = True
    config.run.steps = 800 * 1251  # epochs
    config.objective.least_time = 0.0
    config.time.highest = 0.999
    config.sampling.update(steps=49, last_time=0.001, guidance_scale=1.0, guidance_high=1.0)
    if recipe == "vae":
        config.data.update(crop="bicubic", random_crop=384)
        return rae_decoder256(config, "hf://facebook/dinov2-with-registers-base")
    return apply_recipe(config, recipe)
