"""LSGM (arXiv 2106.05931) in place of REPA-E: SD-VAE (f8d4) and SiT-XL/2 on ImageNet 256 x 256.

    python -m repae_jax train --config configs/imagenet256_lsgm_sdvae.py --workdir runs/lsgm

The KL divergence from N(0, 1), of weight 1e-6 in L_REG, becomes LSGM's bound on that from the SiT,
of the same weight. The SiT keeps REPA; the alignment does not train the VAE (REPA-E, Table 11,
"REPA + E2E-LSGM", whose weights the paper does not print). LSGM's NVAE, annealing, mixed prediction
and spectral regularization are left out. Needs the files of imagenet256_repae_sdvae.py.
"""

from repae_jax.config import apply_recipe, imagenet256, tokenizer


def get_config(recipe: str = "lsgm"):
    config = imagenet256()
    config.tokenizer = tokenizer("f8d4", weights="pretrained/sdvae/sdvae-f8d4.pt")
    config.discriminator.weights = "pretrained/sdvae/sdvae-f8d4-discriminator-ckpt.pt"
    config.backbone.arch = "SiT-XL/2"
    config = apply_recipe(config, recipe)
    config.name = f"imagenet256_{recipe}_sdvae"
    return config
