"""REPA-E from scratch on scikit-learn's handwritten digits: minutes on two CPU cores.

    python -m repae_jax pretrain-teacher --config configs/digits.py
    python -m repae_jax train --config configs/digits.py --workdir runs/digits

The argument picks a recipe, e.g. configs/digits.py:repa (needs config.tokenizer.weights).
"""

from repae_jax.config import apply_recipe, base, teacher


def get_config(recipe: str = "repae"):
    config = base()
    config.name = "digits"
    config.batch_size = 24
    config.ema_decay = 0.99

    config.data.update(source="digits", resolution=32, num_classes=10, workers=0)

    # 32 x 32 x 3 -> 8 x 8 x 4, and 4 x 4 tokens of the SiT beside 4 x 4 of the teacher.
    config.tokenizer.update(
        arch="", channels=8, multipliers=(1, 2, 2), latent_channels=4, num_res_blocks=1,
        middle_attention=False, groups=4,
    )  # fmt: skip
    config.backbone.update(
        arch="", patch_size=2, hidden_size=192, depth=4, num_heads=6, encoder_depth=2,
    )  # fmt: skip
    config.projector.hidden = 256
    config.discriminator.update(filters=16, layers=2)
    config.teachers.digits = teacher(
        patch_size=8, hidden_size=96, depth=4, num_heads=4, preprocessing="native",
        weights="runs/digits_teacher.safetensors",
    )  # fmt: skip
    config.teachers.digits.pretrain.update(steps=300, batch_size=48)

    # LPIPS's weights cannot ship with the project, so the perceptual term is off here.
    config.objective.perceptual_weight = 0.0
    # A SiT this small learns simpler latents better; a reconstruction of 40 dB leaves room for it.
    config.objective.kl_weight = 2e-5

    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=3e-3, warmup_steps=50, decay_steps=1200)
    # As fast as the others, the discriminator can win against a VAE this narrow.
    config.optimizer.discriminator.learning_rate = 3e-4

    config.sampling.update(method="euler-maruyama", steps=25)
    config.run.update(steps=1200, log_every=10, sample_every=100, sample_steps=12)
    config.run.checkpoint_every = 400
    return apply_recipe(config, recipe)
