"""iREPA on SD-VAE (f8d4) with SiT-XL/2: 80 epochs of ImageNet, the tokenizer frozen.

    python -m repae_jax train --config configs/imagenet256_irepa_sdvae.py --workdir runs/irepa

REPA with a convolution as its head and the teacher's tokens normalized over positions (arXiv
2512.10794). The released configuration has a kernel of 1; the paper's of 3 is
--config.projector.kernel=3. Needs in pretrained/: the VAE with its latent statistics, and DINOv2-B.
The argument picks a recipe, e.g. :repae, which needs LPIPS and the discriminator too.
"""

from repae_jax.config import apply_recipe, imagenet256, projector, tokenizer


def get_config(recipe: str = "repa"):
    config = imagenet256()
    config.name = "imagenet256_irepa_sdvae"
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    config.backbone.arch = "SiT-XL/2"
    config.projector = projector("conv", kernel=1)
    config.objective.update(backbone_alignment=1.0, spatial_norm=0.6)
    return apply_recipe(config, recipe)
