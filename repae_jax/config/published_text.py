"""The configurations that published text-to-image runs share."""

import math

from ml_collections import ConfigDict

from repae_jax.config.defaults import backbone, base, condition, text_encoder


def fusedit256() -> ConfigDict:
    """Make the configuration of fuse-dit's published runs at 256 x 256 (REPA-E for text-to-image).

    They train a DiT of 2.66 billion parameters 500,000 steps on BLIP3o's captions, encoded by
    Gemma, at logit-normal times of a grid of 1,000 that are shifted by 3. They sample by 25 Euler
    steps whose times are shifted once more.
    """
    config = _captioned()
    config.data.crop = "bilinear"
    config.text_encoder = text_encoder("gemma-2b", weights="hf://google/gemma-2b", length=256)
    config.condition = condition("text", drop=0.1, embedding="gemma")
    config.backbone = backbone("FuseDiT-3B/2")
    config.optimizer.backbone.weight_decay = 1e-4
    config.run.update(steps=500_000, checkpoint_every=50_000, sample_every=50_000)
    config.time.update(weighting="lognormal", grid=1000, shift=3.0)
    least = 3e-3 / 1.002  # 1 / 1000 after the shift, where the shift acts again
    config.sampling.update(
        method="euler", steps=25, shift=3.0, smallest_time=least, guidance_scale=6.0
    )
    return config


def ddt_text256(latent_values: int) -> ConfigDict:
    """Make the configuration of diffusion-bench's published text-to-image runs at 256 x 256.

    They train DDT 100,000 steps on the means of frozen VAEs and captions that Qwen3 encodes. From
    step 50,000 the rate falls on a line that would reach 2e-5 at step 1,000,000.

    Args:
      latent_values: h w c of the latents, whose root over 64 is the shift (RAE, arXiv 2510.11690,
        section 4).
    """
    config = _captioned()
    config.ema_decay = 0.9995
    config.data.crop = "bicubic"
    config.text_encoder = text_encoder("qwen3-0.6b", weights="hf://Qwen/Qwen3-0.6B", length=256)
    config.condition = condition("text", drop=0.1, embedding="rms_norm")
    config.backbone = backbone("DDT-XL/2")
    config.optimizer.backbone.update(
        learning_rate=2e-4, b2=0.95, decay="linear", decay_start=50_000, decay_steps=1_000_000,
        final_rate=2e-5,
    )  # fmt: skip
    config.run.update(steps=100_000, checkpoint_every=10_000, sample_every=10_000)
    config.objective.update(least_time=0.05, posterior="mean")
    shift = math.sqrt(latent_values / 4096)
    config.time.update(weighting="lognormal", shift=shift)
    config.sampling.update(method="euler", steps=50, shift=shift, guidance_scale=6.0)
    return config


def coco256() -> ConfigDict:
    """Make the configuration of REPA's text-to-image experiment on MS-COCO at 256 x 256.

    It trains an MMDiT of 24 blocks on five captions an image, encoded by CLIP's text tower (arXiv
    2410.06940, section 5). It samples by 50 steps of an ODE or 250 of the SDE; while training with
    guidance 4.
    """
    config = base()
    config.dtype = "bfloat16"
    config.data.update(source="captions", path="data/coco", resolution=256, num_classes=1)
    config.data.crop = "lanczos"
    config.text_encoder = text_encoder(
        "clip-l-text", weights="hf://openai/clip-vit-large-patch14", length=77
    )
    config.condition = condition("text", drop=0.1, embedding="linear")
    config.backbone = backbone("MMDiT-24/2", encoder_depth=8)
    config.sampling.update(method="euler", steps=50, guidance_scale=4.0)
    return config


def _captioned() -> ConfigDict:
    """What fuse-dit and diffusion-bench share: BLIP3o's tars, batches of 1,024, a frozen VAE."""
    config = base()
    config.dtype = "bfloat16"
    config.batch_size = 1024
    config.data.update(source="tars", path="data/blip3o", resolution=256, num_classes=1)
    config.compute.scan_blocks = True
    config.mesh.frozen = "sharded"
    return config
