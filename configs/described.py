"""Text to image from scratch on rendered objects with captions (32 x 32), on two CPU cores.

    python -m repae_jax pretrain-text-encoder --config configs/described.py
    python -m repae_jax pretrain-teacher --config configs/described.py
    python -m repae_jax train --config configs/described.py --workdir runs/described

The argument picks a recipe, e.g. configs/described.py:repa (needs config.tokenizer.weights).
"""

from repae_jax.config import apply_recipe, backbone, base, condition, teacher, text_encoder

STEPS = 12_000


def get_config(recipe: str = "repae"):
    config = base()
    config.name = "described"
    config.batch_size = 16
    config.ema_decay = 0.999

    config.data.update(source="described", resolution=32, num_classes=1, workers=0)

    # 32 x 32 x 3 -> 8 x 8 x 4: 16 tokens of the backbone beside 4 x 4 of the teacher.
    config.tokenizer.update(
        arch="", channels=16, multipliers=(1, 1, 2), latent_channels=4, num_res_blocks=1,
        middle_attention=False, groups=2,
    )  # fmt: skip
    config.text_encoder = text_encoder("grammar-lm", weights="runs/described_lm")
    config.text_encoder.pretrain.update(steps=500, batch_size=64)
    config.condition = condition("text", drop=0.1)
    config.backbone = backbone(
        family="fusedit", patch_size=2, hidden_size=256, depth=6, num_heads=8, encoder_depth=3,
        kv_heads=2, head_width=32, mlp_width=768,
    )  # fmt: skip
    config.projector.hidden = 256
    config.discriminator.update(filters=16, layers=2)
    config.teachers.described = teacher(
        patch_size=8, hidden_size=96, depth=2, num_heads=4, stem=(24, 48, 96),
        preprocessing="native", weights="runs/described_teacher.safetensors",
    )  # fmt: skip
    config.teachers.described.pretrain.update(steps=1200, batch_size=64)

    # LPIPS's weights cannot ship with the project, so the perceptual term is off here. The VAE
    # learns from the squared error in half as many steps as from the absolute one.
    config.objective.perceptual_weight = 0.0
    config.objective.reconstruction = "l2"
    config.objective.kl_weight = 1e-5
    config.objective.discriminator_start = 2 * STEPS // 3
    config.time.update(weighting="lognormal")

    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=2e-3, warmup_steps=200, decay_steps=STEPS)
    config.optimizer.backbone.learning_rate = 1e-3

    config.sampling.update(method="euler", steps=25, guidance_scale=4.0)
    config.run.update(steps=STEPS, log_every=20, sample_every=2000, sample_steps=25)
    config.run.checkpoint_every = 2000
    return apply_recipe(config, recipe)
