"""A run and the original's checkpoint of it, with random weights."""

import jax
import numpy as np
import pytest
import tiny
from run_fixtures import random_steps
from weight_files import random

from repae_jax.cli import main
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.workdir import claim

__all__ = ["random_steps"]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A work directory of step 3 with random weights: nothing is compiled, nothing trained."""
    folder = tmp_path_factory.mktemp("recognise") / "run"
    config = tiny.get_config()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = random(state_template(config, build_models(config), sharding))
    claim(folder, config)
    checkpoints = Checkpoints(folder)
    count = np.asarray(3, np.int32)
    adam = jax.tree.map(lambda a: a if a.ndim else count, state.opt_state)
    checkpoints.save(3, state.replace(step=count, opt_state=adam), {"global_next_index": 24})
    checkpoints.close()
    return folder


@pytest.fixture(scope="session")
def checkpoint(run, tmp_path_factory):
    """The same as the original's training checkpoint."""
    path = tmp_path_factory.mktemp("original") / "exp" / "checkpoints" / "0000003.pt"
    assert main(["convert", str(run), str(path), "--quiet"]) == 0
    return path
