"""Generation: image i is the same whatever its batch, and every count comes out whole."""

import jax
import numpy as np
import pytest
import tiny

from repae_jax.runs.build import build_models, fresh_state
from repae_jax.runs.open_run import sampling_weights
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.sampling.sampler import Sampler

LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 0], np.int32)


@pytest.fixture(scope="module")
def run():
    config = tiny.get_config()
    models = build_models(config)
    state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
    # A fresh SiT says nothing of its inputs: give its zero-initialised layers values.
    leaves, structure = jax.tree.flatten(state.ema["params"])
    rng = np.random.default_rng(0)
    noisy = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    ema = {**state.ema, "params": jax.tree.unflatten(structure, noisy)}
    return models, sampling_weights(state.replace(ema=ema))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "euler-maruyama"])
def test_images_do_not_depend_on_their_batch(run, method):
    models, weights = run
    sampler = Sampler(method, 4, "linear", guidance_scale=1.5, guidance_high=0.8)
    generate = make_generate(models, sampler)
    key = jax.random.key(5)

    def images(labels, **batches):
        return generate_all(generate, weights, key, {"label": labels}, progress=False, **batches)

    whole = images(LABELS, batch_size=10)
    assert whole.shape == (10, 32, 32, 3)
    assert whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(10, -1), axis=0)) == 10
    parts = images(LABELS, batch_size=4)  # 4 + 4 + 2, the last one padded
    assert np.abs(parts.astype(int) - whole).max() <= 1
    late = images(LABELS[6:], batch_size=4, indices=np.arange(6, 10))
    assert np.abs(late.astype(int) - whole[6:]).max() <= 1
