"""Of one seed, training and sampling draw different numbers."""

import contextlib
import pathlib
import types

import jax
import numpy as np
import pytest
import tiny

from repae_jax.parallel.mesh import make_mesh
from repae_jax.parallel.multihost import ALONE
from repae_jax.runs.build import build_models
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.study import measures
from repae_jax.training import default_hooks
from repae_jax.training.hooks import StepEnd
from repae_jax.training.noise import sample_draws
from repae_jax.training.program import Program

SHAPE, SEED = (2, 2, 3), 5


class Sampled(Exception):
    """Carries the key of the samples."""


def raise_key(weights, key, *inputs):
    raise Sampled(key)


def key_of_grids(config, monkeypatch):
    monkeypatch.setattr(default_hooks, "make_generate", lambda *networks, mesh: raise_key)
    logger = types.SimpleNamespace(paused=contextlib.nullcontext)
    run = types.SimpleNamespace(
        config=config, models=build_models(config), mesh=make_mesh(1, 1),
        data=types.SimpleNamespace(train=None),
        logger=logger,
        checkpoints=None, monitor=None, processes=ALONE, workdir=pathlib.Path(),
    )  # fmt: skip
    state = types.SimpleNamespace(
        ema={"latent_norm": None}, params={"tokenizer": None}, frozen={"backbone": None}
    )
    _, draw = default_hooks.default_hooks(run)
    with pytest.raises(Sampled) as raised:
        draw(StepEnd(0, state, {}, None, print, ending=True, done=True))
    return raised.value.args[0]


def key_of_studies(config, monkeypatch):
    def generate_all(generate, weights, key, labels, **options):
        raise Sampled(key)

    monkeypatch.setattr(measures, "generate_all", generate_all)
    monkeypatch.setattr(measures, "sampling_weights", lambda state: None)
    asked = types.SimpleNamespace(inputs=None)
    measured = types.SimpleNamespace(_config=config, _asked=asked, _generate=None)
    with pytest.raises(Sampled) as raised:
        measures.Measures._measure_samples(measured, None, {})
    return raised.value.args[0]


@pytest.mark.parametrize("key_of", [key_of_grids, key_of_studies])
def test_no_draw_of_training_is_one_of_sampling(key_of, monkeypatch):
    config = tiny.get_config()
    config.seed = SEED
    training = Program(config, build_models(config), make_mesh(1, 1)).key()
    sampling = key_of(config, monkeypatch)
    drawn = set()
    for step in range(20):
        draws = sample_draws(jax.random.fold_in(training, step), 4, SHAPE)
        for noise in (draws.posterior_noise, draws.noise):
            drawn |= {row.tobytes() for row in np.asarray(noise)}
    images = np.arange(20)
    noises = [image_noise(sampling, images, SHAPE)]
    noises += [step_noise(sampling, images, SHAPE)(step) for step in range(5)]
    sampled = {row.tobytes() for noise in noises for row in np.asarray(noise)}
    assert len(drawn) == 20 * 2 * 4
    assert len(sampled) == 20 * 6
    assert not drawn & sampled
