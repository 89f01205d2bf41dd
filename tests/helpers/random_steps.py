"""Steps of a configuration's run on random images, and the leaves of its states."""

import jax
import numpy as np

from repae_jax.runs.build import build_models, build_objective, build_optimizers, latent_shape
from repae_jax.runs.initial_state import init_state
from repae_jax.training.noise import sample_draws
from repae_jax.training.step import make_train_step


def steps(config, count):
    """The states at step 0 .. count and the metrics between them."""
    models = build_models(config)
    states, metrics = [init_state(config, models)], []
    step = jax.jit(
        make_train_step(
            models,
            build_objective(config),
            build_optimizers(config),
            ema_decay=config.ema_decay,
            tokenizer_ema_decay=config.tokenizer_ema_decay,
        )
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8),
        "label": rng.integers(0, 10, config.batch_size, np.int32),
    }
    for number in range(count):
        draws = sample_draws(
            jax.random.key(number),
            config.batch_size,
            latent_shape(config, models),
            latent_noise=config.objective.latent_noise,
        )
        state, values = step(states[-1], batch, draws)
        states.append(state)
        metrics.append(values)
    return states, metrics


def leaves(tree):
    """{path: array} of a tree."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}
