"""The configurations that published runs on ImageNet 256 x 256 share."""

import math

from ml_collections import ConfigDict

from repae_jax.config.defaults import backbone, base, discriminator, teacher, tokenizer
from repae_jax.config.recipes import apply_recipe


def imagenet256() -> ConfigDict:
    """Make the configuration that the published ImageNet 256 x 256 runs share.

    They train 400,000 steps in bfloat16 with a DINOv2 teacher and LPIPS. Weights are read from
    pretrained/; docs/weights.md and the errors of `check_files` list them.
    """
    config = base()
    config.dtype = "bfloat16"
    config.data.update(source="tfds", name="imagenet2012", resolution=256, num_classes=1000)
    config.teachers.dinov2 = teacher("dinov2-b", weights="pretrained/dinov2_vitb14_pretrain.pth")
    config.lpips.weights = "pretrained/lpips/vgg.pth"
    config.lpips.vgg_weights = "pretrained/lpips/vgg16-397923af.pth"
    return config


def lightningdit256() -> ConfigDict:
    """Make the configuration of the published LightningDiT runs on ImageNet 256 x 256.

    They train 64 epochs on cached latents, by velocity and its direction at logit-normal times, and
    sample by 249 Euler steps with guidance of three channels (arXiv 2501.01423, and its code).
    """
    config = imagenet256()
    config.backbone = backbone("LightningDiT-XL/1")
    config.batch_size = 1024
    config.run.update(steps=80_000, checkpoint_every=20_000)
    config.optimizer.backbone.update(learning_rate=2e-4, b2=0.95, max_grad_norm=float("inf"))
    config.objective.cosine_weight = 1.0
    config.time.weighting = "lognormal"
    config.sampling.update(
        method="euler",
        steps=249,  # between 250 points
        shift=1 / 0.3,  # 0.3 in the code's direction of time
        guidance_scale=10.0,
        guidance_high=0.9,
        guidance_channels=3,
    )
    return config


def dit256() -> ConfigDict:
    """Make the configuration of the published DiT runs on ImageNet 256 x 256.

    They train DiT-XL/2 on SD-VAE's latents, and sample by 250 ancestral steps that guide three
    channels (arXiv 2212.09748, section 4, and its code).
    """
    config = imagenet256()
    config.backbone = backbone("DiT-XL/2")
    config.objective.interpolant = "ddpm"
    config.optimizer.backbone.max_grad_norm = float("inf")
    config.run.steps = 7_000_000
    config.sampling.update(method="ddpm", steps=250, guidance_scale=1.5, guidance_channels=3)
    return config


def ddt256(latent_values: int) -> ConfigDict:
    """Make the configuration of diffusion-bench's published DDT runs on ImageNet 256 x 256.

    They train DDT-XL 80 epochs on the means of frozen VAEs, at logit-normal times shifted by the
    size of the latents, and sample by 50 Euler steps. From epoch 40 the rate falls on a line that
    would reach 2e-5 at epoch 800.

    Args:
      latent_values: h w c of the latents, whose root over 64 is the shift (RAE, arXiv 2510.11690,
        section 4).
    """
    config = imagenet256()
    config.backbone = backbone("DDT-XL/1")
    config.batch_size = 1024
    config.ema_decay = 0.9995
    epoch = 1251  # steps
    config.run.update(steps=80 * epoch, checkpoint_every=5 * epoch, sample_every=25_000)
    config.optimizer.backbone.update(
        learning_rate=2e-4,
        b2=0.95,
        decay="linear",
        decay_start=40 * epoch,
        decay_steps=800 * epoch,
        final_rate=2e-5,
    )
    config.objective.update(least_time=0.05, posterior="mean")
    shift = math.sqrt(latent_values / 4096)
    config.time.update(weighting="lognormal", shift=shift)
    config.sampling.update(
        method="euler", steps=50, shift=shift, guidance_scale=1.8, guidance_high=0.9
    )
    return config


def rae_decoder256(config: ConfigDict, encoder: str) -> ConfigDict:
    """Make a configuration train a RAE's decoder from scratch, as published, in 16 epochs.

    LPIPS acts from the start, a discriminator on DINO's features learns from epoch 6, and its term
    joins at epoch 8 (arXiv 2510.11690, and its code). Needs DINO-S/8 in pretrained/ and LPIPS.

    Args:
      config: a configuration whose tokenizer is a RAE; it is changed.
      encoder: the file or repository of the encoder's weights.
    """
    epoch = 2502  # steps of 512 images
    config.tokenizer.weights = encoder
    config.discriminator = discriminator(
        "dino-s8", encoder_weights="pretrained/dino_deitsmall8_pretrain.pth"
    )
    config.batch_size = 512
    config.tokenizer_ema_decay = 0.9978
    config.data.flip = False
    config.run.update(steps=16 * epoch, checkpoint_every=epoch)
    for optimizer in (config.optimizer.tokenizer, config.optimizer.discriminator):
        optimizer.update(
            learning_rate=2e-4,
            b2=0.95,
            max_grad_norm=float("inf"),
            warmup_steps=epoch,
            decay_steps=16 * epoch,
            final_rate=2e-5,
        )
    config.objective.update(
        latent_noise=0.8,
        reconstruction_weight=0.5,  # L1 of pixels in [0, 1]
        kl_weight=0.0,
        adversarial_weight=0.75,
        adaptive_weight=True,
        augmentation="diffaug",
        discriminator_start=6 * epoch,
        generator_start=8 * epoch,
        fake_latents="mean",  # without noise
        fake_bytes=True,
    )
    config.lpips.rescale_inputs = False
    return apply_recipe(config, "vae")


def jit256() -> ConfigDict:
    """Make the configuration of the published JiT runs on ImageNet 256 x 256.

    They train on pixels by the velocity of a predicted image at logit-normal times, and sample by
    50 steps of Heun with guidance of each evaluation in an interval (arXiv 2511.13720, and its
    code).
    """
    config = imagenet256()
    config.backbone = backbone("JiT-B/16", encoder_depth=4)
    config.tokenizer = tokenizer(family="pixels")
    config.objective.update(least_time=0.05, latent_norm="fixed")
    config.data.flip = True
    config.batch_size = 1024
    config.run.update(steps=250_200, checkpoint_every=25_020)  # 200 and 20 epochs of 1,251
    config.optimizer.backbone.update(
        learning_rate=2e-4, b2=0.95, max_grad_norm=float("inf"), warmup_steps=6_255
    )
    config.time.update(weighting="lognormal", mean=0.8, scale=0.8)
    config.sampling.update(
        method="heun",
        steps=50,
        guidance_scale=3.0,
        guidance_high=0.9,
        guidance_rule="evaluation",
    )
    return config
