"""The paper's claims on rendered scenes: every arm, three seeds; for a GPU, or two cores.

    python -m repae_jax study configs/study_scenes.py --output runs/study_scenes
    python -m repae_jax study configs/study_scenes.py:small --output runs/study_scenes --jobs 2

The first takes networks and batches as configs/scenes.py has them; the second narrower ones,
shorter runs and fewer images to look at, for hours on two cores. Keys, measures and what an arm
and a claim are: repae_jax/study/plan.py. The arms and claims: repae_jax/study/paper.py.
"""

import pathlib

from repae_jax.errors import UserError
from repae_jax.overrides import read_config
from repae_jax.study.paper import add_paper
from repae_jax.study.plan import base

SCENES = pathlib.Path(__file__).with_name("scenes.py")
SIZES = {"": 10_000, "small": 400}  # steps


def get_config(size: str = ""):
    if size not in SIZES:
        raise UserError(f"study_scenes.py:{size}: there is no such size; leave it out, or :small")
    steps = SIZES[size]
    study = base()
    study.name = f"scenes {size}".strip()
    study.seeds = 3
    study.measured_at = (3 * steps // 10, steps)
    study.judge.update(steps=4000, shift=4)

    config = study.config = read_config(str(SCENES), [])
    for optimizer in config.optimizer.values():
        optimizer.update(warmup_steps=steps // 20, decay_steps=steps)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    if size == "small":
        study.judge.steps = 1000
        study.measures.update(samples=600, reference=2000, heldout=480)
        config.batch_size = 24
        config.ema_decay = 0.99
        config.data.workers = 0
        config.vae.update(channels=16, multipliers=(1, 1, 2), middle_attention=False)
        config.sit.update(hidden_size=192, depth=5, encoder_depth=2, projector_dim=256)
        config.discriminator.update(filters=16, layers=2)
        config.teachers.scenes.update(hidden_size=96, depth=4, num_heads=4)
        config.teachers.scenes.pretrain.steps = 1000
        for optimizer in config.optimizer.values():
            optimizer.learning_rate = 1e-3
        add_paper(study, smaller=dict(hidden_size=96, depth=4, num_heads=3))
    else:
        add_paper(study, smaller=dict(hidden_size=256, depth=6, num_heads=4))
    return study
