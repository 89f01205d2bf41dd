"""One run is the same on one device, on several, in several processes, and moved between them."""

import os
import shutil

import cluster
import numpy as np
import pytest
import runs
from runs import make_teacher

from repae_jax.cli import main
from repae_jax.runs.metrics import read_history

# Every way to divide the devices takes six minutes; without this, two processes and then one.
THOROUGH = bool(os.environ.get("REPAE_THOROUGH"))
thorough = pytest.mark.skipif(not THOROUGH, reason="takes minutes: set REPAE_THOROUGH=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher"))


def words(workdir, teacher, steps=5, stripes=1, **mesh):
    mesh = {"smallest": 64, "data": -1, "fsdp": 1, **mesh}
    overrides = [f"--config.mesh.{key}={value}" for key, value in mesh.items()]
    overrides.append(f"--config.compute.stripes={stripes}")
    overrides.append("--config.optimizer.tokenizer.name=muon")  # beside AdamW
    run = dict(steps=steps, checkpoint_every=3, log_every=1, sample_every=1000)
    return runs.words(workdir, teacher, *overrides, **run)


def train(workdir, teacher, processes, devices, **options):
    """A run with so many processes and devices each; returns its losses by name, step by step."""
    started = cluster.command(words(workdir, teacher, **options), processes, devices)
    for status, _, said in cluster.finish(started):
        assert status == 0, said[-3000:]
    return losses(workdir)


def losses(workdir):
    history = read_history(workdir)
    del history["images_per_second"]
    return {name: values for name, (steps, values) in history.items()}


def assert_same(actual, expected, tolerances):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert len(actual[name]) == len(values)
        for step, tolerance in tolerances.items():
            np.testing.assert_allclose(
                actual[name][step - 1], values[step - 1], rtol=tolerance, atol=1e-7,
                err_msg=f"{name} at step {step}",
            )  # fmt: skip


@pytest.fixture(scope="module")
def alone(teacher, tmp_path_factory):
    """The losses of five steps on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert main(words(workdir, teacher)) == 0
    return losses(workdir)


@pytest.fixture(scope="module")
def sharded(teacher, tmp_path_factory):
    """A work directory after three steps on eight devices, data 2 x fsdp 4."""
    workdir = tmp_path_factory.mktemp("sharded") / "run"
    train(workdir, teacher, 1, 8, steps=3, data=2, fsdp=4)
    return workdir


CASES = [
    pytest.param(1, 8, dict(data=8), id="data 8"),
    pytest.param(1, 8, dict(data=2, fsdp=4), id="data 2 x fsdp 4"),
    pytest.param(1, 8, dict(fsdp=8, frozen="sharded"), id="fsdp 8"),
    pytest.param(1, 8, dict(data=2, fsdp=4, stripes=8), id="stripes, data 2 x fsdp 4"),
    pytest.param(1, 8, dict(fsdp=8, stripes=8), id="stripes, fsdp 8"),
    pytest.param(2, 4, dict(data=2, fsdp=4), id="2 processes of 4"),
]


@thorough
@pytest.mark.slow  # each process compiles the step for its devices
@pytest.mark.parametrize(("processes", "devices", "mesh"), CASES)
def test_devices_do_not_change_the_losses(processes, devices, mesh, alone, teacher, tmp_path):
    # Batch statistics of LatentNorm and the discriminator are over the global batch.
    actual = train(tmp_path / "run", teacher, processes, devices, **mesh)
    assert_same(actual, alone, {1: 1e-5, 5: 1e-4})


MOVES = [
    pytest.param(1, 4, dict(fsdp=2), id="4"),
    pytest.param(1, 2, dict(fsdp=1), id="2"),
    pytest.param(1, 1, dict(fsdp=1), id="1"),
    pytest.param(2, 2, dict(fsdp=2), id="2 processes"),
]


@thorough
@pytest.mark.slow  # each process compiles the step for its devices
@pytest.mark.parametrize(("processes", "devices", "mesh"), MOVES)
def test_a_checkpoint_goes_on_elsewhere(
    processes, devices, mesh, sharded, alone, teacher, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(sharded, workdir)
    actual = train(workdir, teacher, processes, devices, **mesh)
    assert_same(actual, alone, {1: 1e-5, 4: 1e-4, 5: 1e-4})


@pytest.mark.slow  # two processes that compile the step
def test_two_processes_begin_what_one_ends(alone, teacher, tmp_path):
    workdir = tmp_path / "run"
    train(workdir, teacher, 2, 1, steps=3, fsdp=2)
    assert main(words(workdir, teacher)) == 0
    assert_same(losses(workdir), alone, {1: 1e-5, 3: 1e-4, 4: 1e-4, 5: 1e-4})


def test_a_batch_that_does_not_divide_is_said(teacher, tmp_path, capsys):
    arguments = words(tmp_path / "run", teacher)
    assert main([*arguments, "--config.mesh.fsdp=3"]) == 2
    assert "do not multiply to the 1 devices" in capsys.readouterr().err
    assert main([*arguments, "--config.compute.micro_batches=3"]) == 2
    assert "not divisible by the 1 devices times config.compute.micro_batches 3" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
