"""Micro-batches, rematerialisation and the scan over blocks change memory, not results."""

import jax
import numpy as np
import parity
import pytest
import tiny

from repae_jax.training.build import (
    build_models,
    build_objective,
    build_optimizers,
    fresh_state,
    latent_shape,
)
from repae_jax.training.draws import sample_draws
from repae_jax.training.step import make_loss, make_train_step

# What sees each image by itself, or uses running statistics.
ALONE = ("reconstruction_loss", "kl_loss", "vae_align_loss")


def make(config):
    """(models, a state with weights that are not zero, a batch, draws) of a configuration."""
    models = build_models(config)
    state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), state.params
    )
    state = state.replace(params=params)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    return models, state, batch, sample_draws(jax.random.key(1), 8, latent_shape(config, models))


def run(config, **options):
    models, state, batch, draws = make(config)
    optimizers = build_optimizers(config)
    step = jax.jit(make_train_step(models, build_objective(config), optimizers, **options))
    return step(state, batch, draws)


def assert_close(actual, expected, tolerance=1e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        parity.assert_close(a, b, jax.tree_util.keystr(path), tolerance)


def without_batch_statistics():
    config = tiny.get_config()
    config.train = ("sit", "vae")
    config.objective.update(latent_norm="fixed", adversarial_weight=0.0)
    return config


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_whole_batchs_step(parts):
    config = without_batch_statistics()
    whole, expected = run(config)
    state, metrics = run(config, micro_batches=parts)
    expected.pop("latent_std"), metrics.pop("latent_std")  # a statistic of the batch
    assert_close(metrics, expected)
    # Adam divides by the gradient's own size: compare what it divides, not what it makes of it
    assert_close(state.opt_state["sit"], whole.opt_state["sit"], 1e-4)
    assert_close(state.opt_state["vae"], whole.opt_state["vae"], 1e-4)


def test_terms_without_batch_statistics_do_not_see_the_parts():
    config = tiny.get_config()
    whole, expected = run(config)
    state, metrics = run(config, micro_batches=4)
    assert set(metrics) == set(expected)
    for name in ALONE:
        parity.assert_close(metrics[name], expected[name], name)
    # the running mean moves once, by the mean over the whole batch
    mean = state.batch_stats["latent_norm"]["mean"]
    parity.assert_close(mean, whole.batch_stats["latent_norm"]["mean"], "running mean")
    assert not np.isclose(metrics["d_loss"], expected["d_loss"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"sit_remat": "blocks", "vae_remat": "blocks"},
        {"sit_remat": "products", "vae_remat": "products"},
        {"scan_blocks": True},
        {"scan_blocks": True, "sit_remat": "blocks"},
    ],
    ids=str,
)
def test_memory_settings_change_neither_parameters_nor_gradients(changes):
    config = tiny.get_config()
    config.sit.update(depth=4, encoder_depth=2)

    def gradients(config):
        models, state, batch, draws = make(config)
        loss = make_loss(models, build_objective(config), tuple(config.train))
        grads, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(
            state.params, state, batch, draws
        )
        return grads, metrics

    expected = gradients(config)
    config.compute.update(changes)
    actual = gradients(config)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_close(actual, expected, 1e-5)
