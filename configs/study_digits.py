"""The paper's claims on handwritten digits: every arm, five seeds, on two cores.

    python -m repae_jax study configs/study_digits.py --output runs/study_digits --jobs 2

repae_jax/study/plan.py describes keys, measures, arms and claims; repae_jax/study/paper.py defines
the paper's arms and claims.
"""

from repae_jax.config.overrides import read_config
from repae_jax.study.paper import add_paper
from repae_jax.study.plan import base

STEPS = 400  # 65 runs take about 3 hours on two slow cores; chosen before seeing any result


def get_config():
    study = base()
    study.name = "digits"
    study.seeds = 5
    study.measured_at = (2 * STEPS // 5, STEPS)  # at 9/20, REPA-E has spent SiT's total work

    config = study.config = read_config("digits_large", [])
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=1e-3, warmup_steps=30, decay_steps=STEPS)
    config.sampling.update(method="euler", steps=25)
    config.run.sample_steps = 10

    add_paper(study, smaller=dict(hidden_size=96, depth=4, num_heads=3))
    return study
