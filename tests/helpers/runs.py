"""Runs of tiny configurations: the teacher, the command's words, waiting for one, resuming one."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import tiny

from repae_jax.cli import main
from repae_jax.runs.checkpoints import restore_latest

TINY = str(pathlib.Path(tiny.__file__))


def make_teacher(folder):
    """Trains the tiny teacher; returns its file."""
    from repae_jax.training.teacher import pretrain_teacher

    config = tiny.get_config()
    path = folder / "teacher.safetensors"
    config.teachers.small.weights = str(path)
    accuracy = pretrain_teacher(config, "small", progress=False)
    assert 0 <= accuracy <= 1
    return path


def words(workdir, teacher, *overrides, **run):
    """The words of `train`, with keys of config.run."""
    overrides = [*overrides, *(f"--config.run.{key}={value}" for key, value in run.items())]
    weights = f"--config.teachers.small.weights={teacher}"
    return ["train", "--config", TINY, weights, *overrides, "--workdir", str(workdir), "--quiet"]


def assert_continues(workdir, copy):
    """A copy of a run without its last checkpoint, 4, ends with the same state; returns that."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "4")  # as one that was killed behind step 2 leaves it
    assert main(["train", "--workdir", str(copy), "--quiet"]) == 0
    whole, continued = restore_latest(workdir), restore_latest(copy)
    assert whole["step"] == continued["step"] == 4
    jax.tree.map(np.testing.assert_array_equal, whole, continued)
    return whole


def start(arguments, shell="", **options):
    """A command in its own process; compiled programs come from the tests' cache.

    With `shell` such as 'exec "$@" >&-' that runs it.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(TINY).parent), *sys.path])
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    words = [sys.executable, "-m", "repae_jax", *map(str, arguments)]
    words = ["sh", "-c", shell, "sh", *words] if shell else words
    return subprocess.Popen(words, env=environment, **(streams | options))


def wait_for(condition, process, seconds=240):
    """Returns once the condition holds; fails if the process ends or the time passes before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
