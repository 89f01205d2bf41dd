"""The moving average of a trained tokenizer, by which a run gives it (RAE, arXiv 2510.11690)."""

import itertools

import jax
import numpy as np
import pytest
import tiny
from random_steps import leaves, steps
from tiny_weights import write_teacher

from repae_jax.config import apply_recipe
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.vae_files import read_vae
from repae_jax.runs.build import build_models
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.conversion import convert
from repae_jax.runs.initial_state import init_state
from repae_jax.runs.open_run import open_on_host, run_vae, sampling_weights
from repae_jax.runs.weights import read_vae as read_configured
from repae_jax.training.default_hooks import default_hooks
from repae_jax.training.loop import train

DECAY = 0.75


def get_config(recipe, folder):
    config = tiny.get_config(recipe)
    config.tokenizer_ema_decay = DECAY
    if config.teachers:
        config.teachers.small.weights = str(folder / "teacher.safetensors")
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("average")
    write_teacher(path)
    return path


@pytest.mark.slow  # compiles a step
@pytest.mark.parametrize("recipe", ["vae", "repae"])
def test_it_follows_the_parameters(recipe, folder):
    """At its own rate; the backbone's average has another."""
    config = get_config(recipe, folder)
    validate(config)
    states, _ = steps(config, 3)
    for part, decay, of in (
        ("tokenizer", DECAY, lambda state: state.params["tokenizer"]),
        ("params", config.ema_decay, lambda state: state.params.get("backbone", {})),
    ):
        expected = leaves(of(states[0]))
        for before, state in itertools.pairwise(states):
            values = leaves(of(state))
            expected = {n: decay * expected[n] + (1 - decay) * values[n] for n in values}
            for name, array in leaves(state.ema.get(part, {})).items():
                np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7)
            if part == "tokenizer":
                assert set(values) == set(leaves(state.ema["tokenizer"]))
                moved = leaves(before.params["tokenizer"])
                assert any(not np.array_equal(moved[n], values[n]) for n in values)


@pytest.mark.slow  # trains
def test_a_run_gives_its_average(folder, tmp_path):
    """Samplers, other runs and files get the average; training continues with the parameters."""
    config = get_config("repae", folder)
    config.run.update(steps=2)
    run = tmp_path / "run"
    train(config, run, make_hooks=default_hooks)
    state = open_on_host(run).state
    average, params = (leaves(tree) for tree in (state.ema["tokenizer"], state.params["tokenizer"]))
    assert any(not np.array_equal(average[name], params[name]) for name in params)

    def same(tree):
        for name, array in leaves(tree).items():
            np.testing.assert_array_equal(array, average[name])

    weights = sampling_weights(state)
    same(weights["tokenizer"]["params"])
    assert set(weights["backbone"]) == {"params", "constants"}
    same(run_vae(run).params)
    frozen = tiny.get_config("repa")
    frozen.tokenizer.weights = str(run)
    same(read_configured(frozen, build_models(frozen).tokenizer)[0]["params"])
    convert(str(run), tmp_path / "vae", "diffusers", None, progress=False)
    same(read_vae(tmp_path / "vae").params)
    with pytest.raises(UserError, match="the run averages its tokenizer"):
        convert(str(run), tmp_path / "x.pt", "checkpoint", None, progress=False)
    assert not (tmp_path / "x.pt").exists()
    frozen.tokenizer.groups = 1
    with pytest.raises(UserError, match="its tokenizer has groups 2, but config.tokenizer.groups"):
        read_configured(frozen, build_models(frozen).tokenizer)
    # a resumed run continues the parameters and their average
    config.run.update(steps=3)
    train(config, run, make_hooks=default_hooks)
    ended = restore_latest(run)
    after = leaves(ended["params"]["tokenizer"])
    for name, array in leaves(ended["ema"]["tokenizer"]).items():
        expected = DECAY * average[name] + (1 - DECAY) * after[name]
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-7)
    # one that begins from this run begins its average there
    config.tokenizer.weights = str(run)
    begun = init_state(config, build_models(config))
    kept = leaves(ended["ema"]["tokenizer"])
    for tree in (begun.params["tokenizer"], begun.ema["tokenizer"]):
        jax.tree.map(np.testing.assert_array_equal, leaves(tree), kept)


def test_a_frozen_tokenizer_has_none(folder):
    config = get_config("repae", folder)
    config.tokenizer.weights = "somewhere"
    config = apply_recipe(config, "repa")
    validate(config)
    config.tokenizer_ema_decay = DECAY
    with pytest.raises(UserError, match="config.tokenizer_ema_decay is 0.75, but config.train has"):
        validate(config)
