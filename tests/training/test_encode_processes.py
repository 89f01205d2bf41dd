"""`encode` in processes: killed, two of them, and one that fails."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import cluster
import pytest
from runs import TINY
from tiny_weights import write_weights

KILLS = int(os.environ.get("REPAE_KILLS", "1"))  # ten take three minutes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a random VAE and a random teacher."""
    folder = tmp_path_factory.mktemp("encode")
    write_weights(folder)
    return folder


def run_killed(folder, output, *seconds):
    """(exit status, what it printed) of one run of killed_encode.py."""
    script = pathlib.Path(TINY).with_name("killed_encode.py")
    command = [sys.executable, str(script), str(folder), str(output), *map(str, seconds)]
    path = os.pathsep.join([str(script.parent), str(script.parents[1]), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode, done.stdout


@pytest.mark.slow  # every run is a process that compiles the encoder
def test_a_killed_encode_ends_in_the_same_bytes(folder, tmp_path):
    def content(output):
        return {path.name: path.read_bytes() for path in sorted(output.iterdir())}

    _, printed = run_killed(folder, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        output = tmp_path / str(kills)
        status, _ = run_killed(folder, output, rng.uniform(0, float(printed)))
        kills += status != 0
        status, _ = run_killed(folder, output)
        assert status == 0
        assert content(output) == whole
        shutil.rmtree(output)


@pytest.mark.slow  # two processes that compile the encoder
def test_two_processes_encode_as_one_does(folder, tmp_path):
    words = ["encode", "--config", f"{TINY}:repa", f"--config.tokenizer.weights={folder / 'vae'}"]
    words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
    words += ["--per-shard", "300", "--output"]
    contents = []
    for count in (1, 2):
        output = tmp_path / str(count)
        for status, _, said in cluster.finish(cluster.command([*words, str(output)], count)):
            assert status == 0, said
        contents.append({path.name: path.read_bytes() for path in sorted(output.iterdir())})
    assert len(contents[0]) > 3
    assert contents[0] == contents[1]


@pytest.mark.slow  # two processes that compile the encoder
def test_an_error_in_one_process_ends_all(folder, tmp_path):
    words = ["encode", "--config", f"{TINY}:repa", f"--config.tokenizer.weights={folder / 'vae'}"]
    words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
    output = tmp_path / "cache"
    output.mkdir()
    (output / "notes.txt").write_text("something else")  # which the first process alone sees to
    ends = cluster.finish(cluster.command([*words, "--output", str(output)], processes=2))
    assert [status for status, _, _ in ends] == [2, 2]
    assert "holds something else already (notes.txt)" in ends[0][2]
    assert "process 0 of 2 failed" in ends[1][2]
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
