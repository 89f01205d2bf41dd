"""The paper's claims on rendered scenes: every arm, three seeds; for a GPU, or two cores.

    python -m repae_jax study configs/study_scenes.py --output runs/study_scenes
    python -m repae_jax study configs/study_scenes.py:small --output runs/scenes_small --jobs 2

The first uses the networks and batches of configs/scenes.py; the second uses scenes of 32 x 32
pixels, narrower networks and shorter runs. repae_jax/study/plan.py describes keys, measures, arms
and claims; repae_jax/study/paper.py defines the paper's arms and claims.
"""

from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.study.paper import add_paper
from repae_jax.study.plan import base

# Size -> steps. The small size's steps, batch size, GroupNorm of the VAE and learning rate were
# chosen by the reconstruction of the VAE alone, which limits all other arms (docs/results.md).
SIZES = {"": 10_000, "small": 1000}


def get_config(size: str = ""):
    if size not in SIZES:
        raise UserError(f"study_scenes.py:{size}: there is no such size; leave it out, or :small")
    steps = SIZES[size]
    study = base()
    study.name = f"scenes {size}".strip()
    study.seeds = 3
    study.measured_at = (2 * steps // 5, steps)
    study.judge.update(steps=4000, shift=4)

    config = study.config = read_config("scenes", [])
    for optimizer in config.optimizer.values():
        optimizer.update(warmup_steps=steps // 20, decay_steps=steps)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    if size == "small":
        # 32 x 32 pixels cost a quarter of 64 x 64.
        study.judge.update(steps=1500, shift=2)
        study.measures.update(samples=960, reference=4000)
        study.rendered.update(train=24_000, heldout=960)  # rendering costs as much as training
        config.batch_size = 16
        config.ema_decay = 0.99
        config.data.update(resolution=32, workers=0)
        config.tokenizer.update(
            channels=16, multipliers=(1, 1, 2), middle_attention=False, groups=2
        )
        config.backbone.update(hidden_size=192, depth=5, encoder_depth=2)
        config.projector.hidden = 256
        config.discriminator.update(filters=16, layers=2)
        config.teachers.scenes.update(hidden_size=96, depth=2, num_heads=4, stem=(24, 48, 96))
        config.teachers.scenes.pretrain.update(steps=1500, shift=2)
        for optimizer in config.optimizer.values():
            optimizer.learning_rate = 3e-3
        config.objective.discriminator_start = steps // 2  # an earlier start makes results worse
        add_paper(study, smaller=dict(hidden_size=96, depth=4, num_heads=3))
    else:
        add_paper(study, smaller=dict(hidden_size=256, depth=6, num_heads=4))
    return study
