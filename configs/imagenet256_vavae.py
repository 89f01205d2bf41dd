"""VA-VAE (arXiv 2501.01423) from scratch: f16d32 with VF loss of DINOv2-L, 50 epochs of ImageNet.

    python -m repae_jax train --config configs/imagenet256_vavae.py --workdir runs/vavae

The tokenizer that REPA-E's `imagenet256_repae_vavae.py` starts from. The settings are those of its
authors' f16d32_vfdinov2.yaml. As their code, it resizes a picture's shorter side to 256 pixels and
trains on random windows of 256, which slide along the longer side; they resize by OpenCV's bilinear
rule without antialias, here ADM's rule does. Needs in pretrained/ DINOv2-L without registers, and
LPIPS.
"""

from repae_jax.config import apply_recipe, imagenet256, teacher, tokenizer

PIXELS = 256 * 256 * 3


def get_config(recipe: str = "vavae"):
    config = imagenet256()
    config.dtype = "float32"
    config.data.random_crop = 256
    config.tokenizer = tokenizer("f16d32")
    config.backbone.arch = "SiT-XL/1"  # of the other recipes
    # The encoder sees the VAE's own input: [-1, 1], bilinear without antialias.
    weights = "pretrained/dinov2_vitl14_pretrain.pth"
    config.teachers.dinov2 = teacher("dinov2-l", preprocessing="vavae", weights=weights)
    # Distances are summed over pixels, and each of them has LPIPS added.
    config.objective.update(
        reconstruction_weight=PIXELS, perceptual_weight=PIXELS, kl_weight=1e-6,
        adversarial_weight=0.5, adaptive_weight=True, adaptive_epsilon=1e-4,
        # The authors count steps of both optimizers: their 5001.
        discriminator_start=2500, generator_start=2501,
    )  # fmt: skip
    config.lpips.rescale_inputs = False
    for optimizer in config.optimizer.values():
        optimizer.update(b1=0.5, b2=0.9, max_grad_norm=float("inf"))
    config.run.steps = 50 * 1_281_167 // 256
    config = apply_recipe(config, recipe)
    config.name = "imagenet256_vavae"
    return config
