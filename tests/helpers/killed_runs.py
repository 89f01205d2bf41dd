"""Runs `prepare` in forks that are killed with -9, and compares what the restarts leave.

A program of its own, for a fork needs a process without threads: the parent only imports.

  python killed_runs.py SOURCE FOLDER
"""

import functools
import os
import pathlib
import random
import shutil
import sys
import time

import array_record.python.array_record_module  # noqa: F401
import PIL.PngImagePlugin  # noqa: F401
import tqdm  # noqa: F401
from killing import die_before, in_fork

from repae_jax.data.prepare import prepare

MOMENTS = 10


def main(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Both ways to kill; prints how many runs were killed, fails at the first difference."""
    os.fsync = lambda file: None  # slow, and of no use against a kill, which loses nothing written

    def run(output):
        prepare(str(source), output, resolution=8, per_shard=4)

    start = time.monotonic()
    assert not in_fork(lambda: run(folder / "whole"))
    seconds = time.monotonic() - start
    whole = content(folder / "whole")
    assert "manifest.json" in whole
    print("calls", killed_at_calls(run, folder / "calls", whole))
    print("moments", killed_at_moments(run, folder / "moments", whole, seconds))


def killed_at_calls(run, output, whole) -> int:
    """One run for every call that touches a file: killed just before it, then restarted."""

    def dying(call):
        die_before(call, output.parents[1])
        run(output)

    call = 0
    while in_fork(functools.partial(dying, call + 1)):
        call += 1
        assert_nothing_half_written(output, whole)
        assert not in_fork(lambda: run(output))
        assert content(output) == whole, f"differs after a kill before call {call}"
        shutil.rmtree(output)
    return call


def killed_at_moments(run, output, whole, seconds) -> int:
    """Runs that are killed twice after random times, while they write, and then restarted."""
    rng = random.Random(0)
    kills = 0
    while kills < MOMENTS:
        for _ in range(2):
            kills += in_fork(lambda: run(output), rng.uniform(0, seconds))
            assert_nothing_half_written(output, whole)
        assert not in_fork(lambda: run(output))
        assert content(output) == whole, "differs after a kill at a random moment"
        shutil.rmtree(output)
    return kills


def assert_nothing_half_written(output, whole):
    for name, data in content(output).items():
        if not name.startswith((".", "progress")):
            assert data == whole[name], f"{name} is half-written"


def content(folder):
    """Every file below a folder and its bytes; also its empty folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


if __name__ == "__main__":
    main(*(pathlib.Path(argument) for argument in sys.argv[1:]))
