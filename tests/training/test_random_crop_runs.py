"""Runs that train on random crops: resumed, begun before there were any, and refused."""

import json

import jax
import numpy as np
import pytest
from pictures import write_pictures
from runs import TINY, assert_continues
from test_run_data import Run

from repae_jax.cli import main
from repae_jax.runs.checkpoints import restore_latest

PICTURES = {f"c{number % 2}/{number}.png": (60, 40 + number, "RGB") for number in range(11)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of `train` on pictures that are larger than the images."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, PICTURES)
    return ["train", "--config", f"{TINY}:vae", "--quiet", "--config.data.source=folder",
            f"--config.data.path={root}", "--config.data.num_classes=2"]  # fmt: skip


@pytest.mark.slow  # compiles the step
def test_a_resumed_run_has_seen_the_same_crops(words, tmp_path):
    words = [*words, "--config.data.random_crop=36", "--config.data.flip=True"]
    assert main([*words, "--workdir", str(tmp_path / "run")]) == 0
    whole = assert_continues(tmp_path / "run", tmp_path / "copy")
    # and center crops are other images
    words.remove("--config.data.random_crop=36")
    assert main([*words, "--workdir", str(tmp_path / "center")]) == 0
    center = restore_latest(tmp_path / "center")
    pairs = zip(*map(jax.tree.leaves, (whole["params"], center["params"])), strict=True)
    assert not all(np.array_equal(*pair) for pair in pairs)


def test_a_run_from_before_has_center_crops_and_keeps_them(tmp_path, capsys):
    run = Run(tmp_path)
    path = run.workdir / "config.json"
    content = json.loads(path.read_text())
    assert content["data"].pop("random_crop") == 0
    del content["sha256"]  # earlier versions wrote none
    path.write_text(json.dumps(content))
    assert run.train() == 0
    assert run.train("--config.data.random_crop=36") == 2
    assert "another config: config.data.random_crop: 0 -> 36;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.random_crop=16", "config.data.random_crop is 16, smaller than config.data"),
        ("--config.data.source=digits", "config.data.random_crop is 36, but config.data.source '"),
        ("--config.data.random_crop=-1", "config.data.random_crop"),
    ],
)
def test_a_new_run_is_refused_in_one_line(words, override, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    words = [*words, "--config.data.random_crop=36", override, "--workdir", str(workdir)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not workdir.exists()
