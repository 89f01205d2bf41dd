"""The sequence of (image, caption, drop) of a run: for any processes, resumed, killed with -9."""

import json
import os
import pathlib
import signal
import sys

import cluster
import pytest
import seen_batches
import tiny_text
from captioned import write_captioned
from text_weights import write_text_weights

pytestmark = pytest.mark.slow  # processes that begin a run

STEPS = 6  # of 8 images: three epochs of the 16
HELPERS = str(pathlib.Path(seen_batches.__file__).parent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights at random, and 16 pictures with one to three captions."""
    folder = tmp_path_factory.mktemp("sequence")
    write_text_weights(folder, tiny_text.get_config())
    colors = ("red", "blue", "green")
    texts = [[f"{n} {color} discs" for color in colors[: 1 + n % 3]] for n in range(16)]
    write_captioned(folder / "pictures", texts)
    return folder


def seen(folder, name, processes, *, die_at=0, workdir=None):
    """The lines that the first process notes until its end, and the exit statuses."""
    named = {
        "text_encoder.weights": folder / "lm", "data.source": "captions", "data.name": "",
        "data.path": folder / "pictures", "run.steps": STEPS, "data.workers": 0,
        "teachers.small.weights": folder / "teacher.safetensors",
    }  # fmt: skip
    words = ["train", "--config", f"{tiny_text.CONFIG}:repae", "--quiet"]
    words += [f"--config.{key}={value}" for key, value in named.items()]
    words += ["--workdir", str(workdir or folder / name)]
    environment = {
        "SEEN": str(folder / f"{name}.jsonl"), "DIE_AT": str(die_at),
        "PYTHONPATH": os.pathsep.join([HELPERS, *sys.path]),
    }  # fmt: skip
    program = [seen_batches.__file__]
    started = cluster.command(words, processes, program=program, **environment)
    ends = cluster.finish(started)
    file = folder / f"{name}.jsonl"
    assert file.exists(), ends[0][2][-3000:]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return lines, ends


@pytest.fixture(scope="module")
def alone(folder):
    """{step: what it was given} of a single process."""
    lines, ends = seen(folder, "alone", 1)
    assert ends[0][0] == 0, ends[0][2][-3000:]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for name in seen_batches.NAMES:  # they differ from step to step; two rows of coins may agree
        assert len({line[name] for line in lines}) >= STEPS - (name == "drops"), name
    return {line["step"]: line for line in lines}


def test_two_processes_see_what_one_sees(folder, alone):
    lines, ends = seen(folder, "two", 2)
    assert [status for status, *_ in ends] == [0, 0], ends[0][2][-3000:]
    assert {line["step"]: line for line in lines} == alone


def test_killed_with_9_and_resumed_by_another_number_of_processes(folder, alone):
    first, ends = seen(folder, "killed", 1, die_at=5)
    assert ends[0][0] == -signal.SIGKILL
    lines, ends = seen(folder, "resumed", 2, workdir=folder / "killed")
    assert [status for status, *_ in ends] == [0, 0], ends[0][2][-3000:]
    assert 1 < lines[0]["step"] <= 5  # from a checkpoint, some of whose steps had been seen
    for line in [*first, *lines]:
        assert line == alone[line["step"]]
    assert lines[-1]["step"] == STEPS
