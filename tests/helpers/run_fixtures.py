"""Fixtures of tiny runs, for the folders whose conftest.py takes them: one a file of tests."""

import functools

import jax
import numpy as np
import pytest
import tiny
from runs import make_teacher, words

from repae_jax.cli import main
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.runs.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A trained tiny teacher's file."""
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    """A work directory after 4 steps, with checkpoints at 2 and 4."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(workdir, teacher)) == 0
    return workdir


@pytest.fixture(scope="module")
def random_run(tmp_path_factory):
    """A work directory whose images depend on their classes, as after training."""
    return save_random(tmp_path_factory.mktemp("runs") / "run", {4: 0})


@pytest.fixture(scope="module")
def random_steps(tmp_path_factory):
    """As `random_run`, with another model saved at step 2."""
    return save_random(tmp_path_factory.mktemp("runs") / "run", {2: 1, 4: 0})


def save_random(workdir, seeds):
    """A run with checkpoints at these steps, of weights by these seeds; returns the folder."""
    config = tiny.get_config()
    shapes = state_shapes(config, build_models(config))
    work_directory.claim(workdir, config)
    checkpoints = Checkpoints(workdir)
    for step, seed in seeds.items():
        rng = np.random.default_rng(seed)
        state = jax.tree_util.tree_map_with_path(functools.partial(random_leaf, rng), shapes)
        checkpoints.save(step, state.replace(step=np.int32(step), opt_state={}), {})
    checkpoints.close()
    return workdir


def random_leaf(rng, path, leaf):
    """An array of that shape: nothing is zero, as much of a fresh SiT is."""
    values = 0.1 * rng.standard_normal(leaf.shape)
    if len(leaf.shape) > 1:  # weights keep the size of what they multiply
        values *= 10 / np.sqrt(np.prod(leaf.shape[:-1]))
    elif "scale" in str(path[-1]) or "var" in str(path[-1]):
        values = 1 + abs(values)
    return values.astype(leaf.dtype)
