"""The configurations that published runs on ImageNet 256 x 256 share."""

from ml_collections import ConfigDict

from repae_jax.config.defaults import backbone, base, teacher


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
