"""A tiny run for each file of tests that wants one."""

import pytest
from runs import make_teacher, words

from repae_jax.cli import main


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
