"""A teacher may be called anything, the names of roles and of files included."""

import json

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from runs import TINY

from repae_jax.cli import main
from repae_jax.config.measured import measuring_teacher
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.runs.checkpoint_names import names_of
from repae_jax.runs.metrics import read_history
from repae_jax.runs.open_run import open_run

pytestmark = pytest.mark.slow  # its fixtures train
NAMES = ("sit", "vae", "backbone", "tokenizer", "teachers", "lpips", "inception", "weights")
CONFIG = f"""
import runpy

def get_config(recipe="repae"):
    config = runpy.run_path({TINY!r})["get_config"](recipe)
    entry = config.teachers.small
    for name in {NAMES}:
        config.teachers[name] = entry.copy_and_resolve_references()
    del config.teachers.small
    return config
"""


def named(config=None, names=NAMES):
    """The tiny configuration with a teacher of each name."""
    config = config or tiny.get_config()
    teachers = {name: config.teachers.small.copy_and_resolve_references() for name in names}
    config.teachers = ConfigDict(teachers)
    return config


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    """A run of 2 steps with a teacher of each name, measured in the features of one."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "config.py").write_text(CONFIG)
    more = ["every=2", "network=teachers.inception", "samples=20", "cknna_images=20"]
    words = ["train", *arguments(folder, teacher), "--workdir", str(folder / "run")]
    assert main([*words, *(f"--config.evaluation.{key}" for key in more)]) == 0
    return folder


def arguments(folder, teacher, recipe="repae"):
    weights = [f"--config.teachers.{name}.weights={teacher}" for name in NAMES]
    return ["--config", f"{folder / 'config.py'}:{recipe}", *weights, "--config.run.steps=2",
            "--quiet"]  # fmt: skip


def test_training_keeps_them_apart_from_roles(folder):
    state = open_run(folder / "run").state
    assert set(state.frozen["teachers"]) == set(NAMES)
    assert set(state.frozen) == {"teachers", "backbone"}
    assert set(state.frozen["backbone"]) == {"constants"}


def test_the_run_is_measured_with_each(folder):
    history = {name.removeprefix("evaluation/") for name in read_history(folder / "run")}
    expected = {f"cknna_{name}" for name in NAMES}
    expected |= {f"{measure}_inception" for measure in ("frechet", "precision", "recall")}
    assert expected <= history


def test_alignment_is_evaluated_with_each(folder):
    words = ["evaluate-alignment", "--workdir", str(folder / "run"), "--count", "20", "--quiet"]
    assert main([*words, "--times", "0.5"]) == 0
    figures = json.loads((folder / "run" / "alignment" / "alignment.json").read_text())
    assert set(figures["cknna"]) == set(figures["probe_teachers"]) == set(NAMES)


def test_a_cache_keeps_the_tokens_of_each(folder, teacher):
    tokenizer = f"--config.tokenizer.weights={folder / 'run'}"
    words = [*arguments(folder, teacher, "repa"), tokenizer]
    cache = folder / "cache"
    assert main(["encode", *words, "--output", str(cache / "train"), "--teachers"]) == 0
    made = json.loads((cache / "train" / "manifest.json").read_text())["made"]
    assert set(made["teachers"]) == set(NAMES)
    data = ["--config.data.source=latents", f"--config.data.path={cache}"]
    assert main(["train", *words, *data, "--workdir", str(folder / "second")]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_any_of_them_measures_a_run(name):
    config = named()
    config.evaluation.update(every=2, network=f"teachers.{name}")
    validate(config)
    assert measuring_teacher(config) == name
    config.evaluation.network = name  # as in configurations of version 1
    assert measuring_teacher(config) == (None if name == "inception" else name)
    del config.teachers[name]
    for network in {f"teachers.{name}", name} - {"inception"}:
        config.evaluation.network = network
        with pytest.raises(UserError, match=f"network is '{network}': use one of inception, teach"):
            validate(config)


def test_inception_is_not_a_teacher_of_that_name(tmp_path, teacher, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    words = [*arguments(tmp_path, teacher), "--config.evaluation.every=2"]
    words += [f"--config.evaluation.weights={teacher}"]  # which holds no InceptionV3
    assert main(["train", *words, "--workdir", str(tmp_path / "run")]) == 2
    assert "teacher.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weights", "statistics"])
def test_another_teacher_is_another_run_whatever_its_name(name, tmp_path):
    work_directory.claim(tmp_path / "run", named(names=("first", name)))
    with pytest.raises(UserError, match=f"another config: config.teachers.{name}"):
        work_directory.check(tmp_path / "run", named(names=("first",)))


def test_checkpoints_of_version_1_keep_the_names_of_teachers():
    config = named(names=("vae", "backbone", "teachers", "lpips"))
    state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape), state_shapes(config, build_models(config))
    )
    fields = {"params": dict(state.params), "frozen": dict(state.frozen)}
    ours = fields["frozen"]["teachers"]
    # Version 1 kept teachers beside the one backbone's constants.
    stored = {
        "params": {"sit": fields["params"]["backbone"], "vae": fields["params"]["tokenizer"]},
        "frozen": {"sit": fields["frozen"]["backbone"], **ours},
    }
    names = names_of(stored)
    present = names.present(stored)
    assert set(present["params"]) == {"backbone", "tokenizer"}
    assert set(present["frozen"]) == {"backbone", "teachers"}
    assert present["frozen"]["backbone"] is stored["frozen"]["sit"]
    assert set(present["frozen"]["teachers"]) == {"vae", "backbone", "teachers", "lpips"}
    assert all(present["frozen"]["teachers"][name] is ours[name] for name in ours)
    assert names.stored(present) == stored
