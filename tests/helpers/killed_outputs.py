"""Writes outputs of `generate` in forks that are killed with -9, and compares what restarts leave.

A program of its own, for a fork needs a process without threads: the parent only imports, and
nothing of JAX.

  python killed_outputs.py FOLDER
"""

import functools
import os
import pathlib
import shutil
import sys

import numpy as np
import PIL.PngImagePlugin  # noqa: F401
from killing import die_before, in_fork

from repae_jax.sampling import outputs

COUNT, BATCH, SHAPE = 6, 4, (8, 8, 3)
MADE = {"seed": 0}
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)


class Inline:
    """The threads' pool, without threads."""

    def __init__(self, workers): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    map = staticmethod(map)


def main(folder: pathlib.Path) -> None:
    """Prints how many forks were killed, fails at the first difference."""
    assert "jax" not in sys.modules
    outputs.concurrent.futures.ThreadPoolExecutor = Inline
    os.fsync = lambda file: None  # slow, and of no use against a kill, which loses nothing written
    for name in ("x.npz", "x"):
        print(name, kill_at_calls(folder / "killed", name, folder / "whole"))


def write(path):
    """What the command does with its output."""
    output = outputs.make_output(path, COUNT, SHAPE)
    with output.claimed():
        output.begin(MADE)
        starts = output.missing(BATCH)
        finished = not starts and path.exists()
        for start in starts:
            output.write(start, IMAGES[start : start + BATCH])
            output.show(start + BATCH)
        output.show(COUNT)
        if not finished:
            output.finish(np.arange(COUNT))


def kill_at_calls(folder, name, undisturbed):
    """One run for every call that touches a file: killed just before it, then restarted."""
    assert not in_fork(lambda: write(undisturbed / name))
    whole = content(undisturbed)
    kills = 0

    def dying(call):
        die_before(call, folder)
        write(folder / name)

    while in_fork(functools.partial(dying, kills + 1)):
        kills += 1
        for file, data in content(folder).items():
            if not file.endswith((".partial", ".tmp", ".lock")):
                assert data == whole[file], f"{file} is half-written"
        assert not in_fork(lambda: write(folder / name))
        assert content(folder) == whole, f"{name} differs after a kill before call {kills}"
        shutil.rmtree(folder)
    shutil.rmtree(folder)
    shutil.rmtree(undisturbed)
    return kills


def content(folder):
    """Every file below a folder and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
