"""REPA-E from scratch on rendered scenes (64 x 64, 24 shapes): hours on a GPU, no download.

    python -m repae_jax pretrain-teacher --config configs/scenes.py
    python -m repae_jax train --config configs/scenes.py --workdir runs/scenes

The argument picks a recipe, e.g. configs/scenes.py:repa (needs config.tokenizer.weights). Scenes
are rendered as they are needed; `prepare scenes:100000 data/scenes/train` renders them once.
"""

from repae_jax.config import apply_recipe, base, teacher


def get_config(recipe: str = "repae"):
    config = base()
    config.name = "scenes"
    config.batch_size = 64
    config.ema_decay = 0.999

    config.data.update(source="scenes", resolution=64, num_classes=24, workers=2)

    # 64 x 64 x 3 -> 16 x 16 x 4, and 8 x 8 tokens of the SiT beside 8 x 8 of the teacher.
    config.tokenizer.update(
        arch="", channels=32, multipliers=(1, 2, 4), latent_channels=4, num_res_blocks=1,
        middle_attention=True, groups=8,
    )  # fmt: skip
    config.backbone.update(
        arch="", patch_size=2, hidden_size=384, depth=8, num_heads=6, encoder_depth=3,
    )  # fmt: skip
    config.projector.hidden = 512
    config.discriminator.update(filters=32, layers=3)
    config.teachers.scenes = teacher(
        patch_size=8, hidden_size=192, depth=4, num_heads=6, stem=(32, 64, 128),
        preprocessing="native", weights="runs/scenes_teacher.safetensors",
    )  # fmt: skip
    config.teachers.scenes.pretrain.update(steps=4000, shift=4)

    # LPIPS's weights cannot ship with the project, so the perceptual term is off here.
    config.objective.perceptual_weight = 0.0
    config.objective.kl_weight = 1e-5

    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=3e-4, warmup_steps=500, decay_steps=20_000)

    config.sampling.update(method="euler-maruyama", steps=100)
    config.run.update(steps=20_000, sample_every=2000, sample_steps=25, checkpoint_every=2000)
    return apply_recipe(config, recipe)
