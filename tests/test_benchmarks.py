"""The benchmarks run: each at its smallest, where that takes seconds."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    "checksums.py --gb 0.001 --folder FOLDER/new",
    "evaluation.py cknna --count 50",
    "evaluation.py ssim --count 2",
    "fingerprint.py --images 100 --classes 5 --bytes 100",
    "flops.py digits.py",
    "latents.py --images 8 --batch-size 4 --workers 0 --seconds 0.1",
    "memory.py --batches 60 --every 30 --workers 0",
    "scaling.py docs/scaling.jsonl --table",
    "versions.py docs/matrix.jsonl --table",
)
# Of the others, a run takes minutes, or needs the original, a GPU, or a trace of one.
LARGE = (
    "bfloat16.py", "compile_time.py", "conversion.py", "data.py", "demo_screenshot.py", "gpu.py",
    "kernels.py", "loop_overhead.py", "reproduce.py", "sampler_precision.py", "sampling.py",
    "step.py", "upsample.py",
)  # fmt: skip
PARTS = (  # of others, or without options
    "lightningdit.py", "numerics_table.py", "original.py", "repae.py", "side_by_side.py"
)  # fmt: skip


def call(command, tmp_path):
    """Run one in a process of its own; returns what it printed."""
    words = command.replace("FOLDER", str(tmp_path)).split()
    path = [str(ROOT), str(ROOT / "tests" / "helpers"), *sys.path]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{words[0]}", *words[1:]], cwd=ROOT, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_benchmark_is_here():
    known = {command.split()[0] for command in SMALL} | {*LARGE, *PARTS}
    assert known == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


@pytest.mark.slow  # each is a process that imports JAX
@pytest.mark.parametrize("command", SMALL)
def test_it_runs(command, tmp_path):
    assert len(call(command, tmp_path).splitlines()) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_its_modules_and_options_are_there(name, tmp_path):
    assert "usage" in call(f"{name} --help", tmp_path)
