"""A configuration of seconds: every part of the digits recipe, as small as it goes."""

from repae_jax.config import apply_recipe, base, teacher


def get_config(recipe: str = "repae"):
    config = base()
    config.name = "tiny"
    config.batch_size = 8
    config.ema_decay = 0.9
    config.data.update(source="digits", resolution=32, num_classes=10, workers=0)
    config.tokenizer.update(
        arch="", channels=4, multipliers=(1, 1, 1), latent_channels=2, num_res_blocks=1,
        middle_attention=False, groups=2,
    )  # fmt: skip
    config.backbone.update(
        arch="", patch_size=2, hidden_size=16, depth=2, num_heads=2, encoder_depth=1,
    )  # fmt: skip
    config.projector.hidden = 8
    config.discriminator.update(filters=4, layers=2)
    config.teachers.small = teacher(
        patch_size=8, hidden_size=8, depth=1, num_heads=2, preprocessing="native",
        weights="teacher.safetensors",
    )  # fmt: skip
    config.teachers.small.pretrain.update(steps=3, batch_size=16)
    config.objective.perceptual_weight = 0.0
    config.sampling.update(method="euler", steps=3)
    config.run.update(
        steps=4, log_every=1, sample_every=1000, sample_steps=2, checkpoint_every=2
    )  # fmt: skip
    return apply_recipe(config, recipe)
