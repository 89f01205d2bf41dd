r"""DDT of width 1440 on RAEv2's DINOv3-L (16 x 16 x 1024), which predicts the data.

    python -m repae_jax train --config configs/imagenet256_raev2_dinov3.py --workdir runs/raev2
    python -m repae_jax train --config configs/imagenet256_raev2_dinov3.py:vae \
        --workdir runs/raev2_vae

RAEv2 (arXiv 2605.18324) averages the tokens of DINOv3's last seven odd blocks; the presets -k1 and
-k23 of the tokenizer take the last block, and all but the first. The argument picks a recipe; "vae"
is the first stage, which trains the decoder from scratch, with LPIPS and a discriminator on DINO's
features. Its authors train it on images that were prepared at 256 x 256 and crop nothing from them
(RAE's are random crops), so it takes center crops. Needs decoder.pt and stats.pt of
nyu-visionx/RAEv2-models, and DINOv3-L (from the hub, after its license is accepted, or as
encoder.safetensors beside decoder.pt); "vae" needs DINOv3-L, DINO-S/8 and LPIPS. The published run
has a second output after 8 blocks, for guidance by itself, and another polynomial in Muon; both are
absent here.
"""

from repae_jax.config import apply_recipe, backbone, ddt256, rae_decoder256, tokenizer


def get_config(recipe: str = "vanilla"):
    config = ddt256(latent_values=1024 * 16**2)
    config.name = "imagenet256_raev2_dinov3"
    weights = "hf://nyu-visionx/RAEv2-models/stage1/imagenet/dinov3l-k7/decoder.pt"
    config.tokenizer = tokenizer("raev2-dinov3-large-k7", weights=weights)
    config.backbone = backbone(
        family="ddt", patch_size=1, hidden_size=1440, depth=28, num_heads=20, predicts_data=True
    )
    config.data.flip = True
    epoch = 1251  # steps
    config.optimizer.backbone.update(name="muon", decay_start=25 * epoch, decay_steps=50 * epoch)
    config.sampling.update(guidance_scale=1.0, guidance_high=1.0)
    if recipe == "vae":
        return rae_decoder256(config, "hf://facebook/dinov3-vitl16-pretrain-lvd1689m")
    return apply_recipe(config, recipe)
