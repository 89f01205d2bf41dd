"""`--step N`: the commands that read a run take any of its checkpoints."""

import json
import shutil

import numpy as np
import pytest
from painting import words
from PIL import Image

from repae_jax.cli import main

pytestmark = pytest.mark.slow  # its fixtures train


@pytest.fixture(scope="module")
def first(random_steps, tmp_path_factory):
    """The run as it was at step 2."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    shutil.copytree(random_steps, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    return workdir


def test_a_picture_is_of_the_step(random_steps, first, tmp_path):
    def sampled(workdir, *more):
        path = tmp_path / "x.png"
        command = ["sample", "--workdir", str(workdir), "--labels", "3,1", "--quiet"]
        assert main([*command, "--output", str(path), *more]) == 0
        return np.asarray(Image.open(path))

    at_first = sampled(first)
    np.testing.assert_array_equal(sampled(random_steps, "--step", "2"), at_first)
    assert (sampled(random_steps) != at_first).any()
    np.testing.assert_array_equal(sampled(random_steps, "--step", "4"), sampled(random_steps))


def test_generated_images_are_of_the_step(random_steps, first, tmp_path):
    options = dict(count=3, batch_size=3)
    assert main(words(random_steps, tmp_path / "x.npz", **options, step=2)) == 0
    assert main(words(first, tmp_path / "y.npz", **options)) == 0
    x, y = (np.load(tmp_path / name)["arr_0"] for name in ("x.npz", "y.npz"))
    np.testing.assert_array_equal(x, y)
    assert json.loads((tmp_path / "x.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("target", "to"),
    [("vae", "diffusers"), ("vae.safetensors", "vae"), ("0000002.pt", "checkpoint")],
)
def test_what_is_converted_is_of_the_step(target, to, trained, tmp_path):
    def converted(name, workdir, *more):
        folder = tmp_path / name
        folder.mkdir()
        command = ["convert", str(workdir), str(folder / target), "--to", to, "--quiet"]
        assert main([*command, *more]) == 0
        return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    at_first = converted("first", tmp_path / "run")
    assert converted("second", trained, "--step", "2") == at_first
    assert converted("newest", trained) != at_first


@pytest.mark.parametrize(
    "command",
    ["sample --workdir {}", "generate --output x.npz --workdir {}", "report --workdir {}",
     "evaluate-alignment --workdir {}", "convert {} vae"],
)  # fmt: skip
def test_a_step_that_is_not_there_is_refused(command, random_steps, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.format(random_steps).split(), "--quiet", "--step", "3"]) == 2
    error = capsys.readouterr().err
    assert f"no checkpoint of step 3 in {random_steps}/checkpoints: there are 2, 4" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize("command", ["convert {0}/vae {0}/new", "evaluate {0} --reference {0}"])
def test_a_step_is_of_a_run(command, random_steps, tmp_path, capsys):
    assert main(["convert", str(random_steps), str(tmp_path / "vae"), "--quiet"]) == 0
    capsys.readouterr()
    assert main([*command.format(tmp_path).split(), "--quiet", "--step", "4"]) == 2
    assert "--step is" in capsys.readouterr().err
