"""`generate`: the same set on any devices and in any processes, and after any kill."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import cluster
import numpy as np
import pytest
from painting import contents, words
from runs import TINY, wait_for

from repae_jax.cli import main

KILLS = int(os.environ.get("REPAE_KILLS", "1"))


@pytest.mark.slow
def test_outputs_survive_a_kill_before_every_file_call(tmp_path):
    script = pathlib.Path(TINY).with_name("killed_outputs.py")
    path = os.pathsep.join([str(script.parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    npz, png = done.stdout.split("\n")[:2]
    assert int(npz.removeprefix("x.npz ")) > 10
    assert int(png.removeprefix("x ")) > 10


@pytest.mark.slow  # every killed run is a process that starts and compiles
def test_a_killed_run_ends_in_the_same_bytes(run, tmp_path):
    options = dict(count=640, batch_size=8)
    assert main(words(run, tmp_path / "whole" / "x.npz", **options)) == 0
    whole = contents(tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        output = tmp_path / str(kills) / "x.npz"
        command = [sys.executable, "-m", "repae_jax", *words(run, output, **options)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda output=output: output.with_name("x.npz.partial").exists(), process)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() != 0
        assert main(words(run, output, **options)) == 0
        assert contents(output.parent) == whole
        shutil.rmtree(output.parent)


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """The images of one device, and the options that made them."""
    options = dict(count=21, seed=5, guidance_scale=1.5, guidance_high=0.8)
    output = tmp_path_factory.mktemp("alone") / "x.npz"
    assert main(words(run, output, **options, batch_size=21)) == 0
    with np.load(output) as content:
        images = content["arr_0"]
    assert len(np.unique(images.reshape(21, -1), axis=0)) == 21
    return images, options


@pytest.mark.slow  # each process starts and compiles for its devices
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1)])
def test_devices_and_processes_do_not_change_the_set(processes, devices, alone, run, tmp_path):
    images, options = alone
    output = tmp_path / "x.npz"
    command = words(run, output, **options, batch_size=7)  # rounded up to 8
    if processes > 1:
        ends = cluster.finish(cluster.command(command, processes, devices))
    else:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        done = subprocess.run([sys.executable, "-m", "repae_jax", *command],
                              env={**os.environ, "XLA_FLAGS": flags},
                              capture_output=True, text=True)  # fmt: skip
        ends = [(done.returncode, done.stdout, done.stderr)]
    for status, _, said in ends:
        assert status == 0, said[-2000:]
    with np.load(output) as content:
        assert np.abs(content["arr_0"].astype(int) - images).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npz", "x_preview.png"]


@pytest.mark.slow  # two processes that start and compile
def test_a_fault_in_the_first_process_ends_both(run, tmp_path):
    # The preview's name is taken by a folder, which shows when the first images are there.
    (tmp_path / "x_preview.png" / "a").mkdir(parents=True)
    command = words(run, tmp_path / "x.npz", count=64, batch_size=4)
    started = time.monotonic()
    ends = cluster.finish(cluster.command(command, processes=2))
    assert [status for status, _, _ in ends] == [2, 2]
    assert "x_preview.png: cannot be written" in ends[0][2]
    assert time.monotonic() - started < 100
