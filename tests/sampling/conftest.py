"""Tiny runs, and a `generate` that paints."""

import numpy as np
import pytest
from painting import paint
from run_fixtures import random_run, random_steps, teacher, trained

from repae_jax.runs.open_run import open_run
from repae_jax.sampling.generate import Generated

__all__ = ["random_run", "random_steps", "teacher", "trained"]


@pytest.fixture(scope="module")
def run(random_run):
    """A work directory whose images depend on their classes, as after training."""
    return random_run


@pytest.fixture(scope="module")
def opened(run):
    """The run as it is loaded, which takes seconds: once a file, for the tests that only paint."""
    return open_run(run)


@pytest.fixture
def painted(opened, monkeypatch):
    """Replaces the networks by a function of index and label; returns the list of its batches."""
    batches = []
    monkeypatch.setattr("repae_jax.runs.open_run.open_run", lambda *_, **__: opened)

    def make_generate(*_, **__):
        def generate(weights, key, indices, inputs):
            batches.append(np.asarray(indices))
            images = paint(np.asarray(indices), np.asarray(inputs["label"]))
            return Generated(images, np.zeros(len(images), np.int32))

        return generate

    monkeypatch.setattr("repae_jax.sampling.generate.make_generate", make_generate)
    return batches
