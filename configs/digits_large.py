"""The digits with larger networks and batches than the quickstart's; what the studies train.

    python -m repae_jax pretrain-teacher --config configs/digits_large.py
    python -m repae_jax train --config configs/digits_large.py --workdir runs/digits_large

The argument picks a recipe, as for configs/digits.py.
"""

from repae_jax.config import apply_recipe
from repae_jax.config.overrides import read_config


def get_config(recipe: str = "repae"):
    config = read_config("digits", [])
    config.batch_size = 48
    config.tokenizer.update(channels=16, multipliers=(1, 1, 2), groups=8)
    config.backbone.depth = 5
    config.teachers.digits.pretrain.batch_size = 128
    for optimizer in config.optimizer.values():
        optimizer.update(learning_rate=3e-3, decay_steps=1450)
    config.sampling.steps = 100
    config.run.update(steps=1450, sample_every=400, sample_steps=25)
    return apply_recipe(config, recipe)
