"""Tenants of the roles that the package does not know: each is one short file and one row."""

import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from repae_jax.cli import main
from repae_jax.runs.checkpoints import restore_latest

pytestmark = pytest.mark.slow  # each toy trains, and compiles every command's programs

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "configs.py"
TOYS = ("backbone", "condition", "encoder")


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def config(toy, recipe, folder, **keys):
    keys = {"teachers.small.weights": folder / "teacher.safetensors", "run.steps": 4} | keys
    keys["optimizer.backbone.learning_rate"] = 0.01  # four steps suffice to tell classes apart
    named = f"{CONFIG}:{toy}-{recipe}"
    return ["--config", named, *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.fixture(scope="module", params=TOYS)
def trained(request, tmp_path_factory):
    """(toy, folder): in the folder, a run of four steps with a checkpoint at the second."""
    folder = tmp_path_factory.mktemp(request.param)
    run("pretrain-teacher", *config(request.param, "", folder), "--quiet")
    run("train", *config(request.param, "repae", folder), "--workdir", folder / "run", "--quiet")
    return request.param, folder


@pytest.mark.parametrize("toy", TOYS)
def test_a_tenant_is_a_short_file(toy):
    assert len((HERE / f"{toy}.py").read_text().splitlines()) <= 40


def test_a_killed_run_continues_bit_by_bit(trained, tmp_path):
    _, folder = trained
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "4")  # as one that was killed behind step 2 leaves it
    run("train", "--workdir", copy, "--quiet")
    whole, continued = restore_latest(folder / "run"), restore_latest(copy)
    assert whole["step"] == continued["step"] == 4
    jax.tree.map(np.testing.assert_array_equal, whole, continued)


def test_it_samples_with_guidance(trained, tmp_path):
    _, folder = trained
    for name, scale in {"plain": 1, "guided": 3}.items():
        words = ["--output", tmp_path / f"{name}.npz", "--count", 4, "--guidance-scale", scale]
        run("generate", "--workdir", folder / "run", *words, "--quiet")
    plain, guided = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("plain", "guided"))
    assert np.any(plain != guided)
    run("sample", "--workdir", folder / "run", "--output", tmp_path / "x.png", "--quiet")


def test_it_trains_on_cached_latents(trained, tmp_path):
    toy, folder = trained
    words = config(toy, "repa", folder, **{"tokenizer.weights": folder / "run"})
    run("encode", *words, "--output", tmp_path / "cache", "--teachers", "--quiet")
    words += [f"--config.data.path={tmp_path / 'cache'}", "--config.data.source=latents"]
    run("train", *words, "--workdir", tmp_path / "run", "--quiet")


def test_its_alignment_is_measured(trained, tmp_path):
    _, folder = trained
    words = ["--count", 24, "--times", "0.5", "--output", tmp_path / "alignment"]
    run("evaluate-alignment", "--workdir", folder / "run", *words, "--quiet")
    (file,) = (tmp_path / "alignment").glob("*.json")
    assert np.isfinite(json.loads(file.read_text())["cknna"]["small"]).all()


def test_it_exports_what_others_know(trained, tmp_path, capsys):
    toy, folder = trained
    run("convert", folder / "run", tmp_path / "vae", "--quiet")
    assert (tmp_path / "vae" / "config.json").exists()
    unknown = {"backbone": "a Mixer with a ClassLabel", "condition": "a SiT with a Caption"}
    run("convert", folder / "run", tmp_path / "x.pt", "--quiet", status=2 if toy in unknown else 0)
    assert unknown.get(toy, "") in capsys.readouterr().err
    if toy not in unknown:
        run("convert", tmp_path / "x.pt", tmp_path / "imported", "--quiet")
        words = ["--workdir", tmp_path / "imported", "--config.run.steps=5"]
        run("train", *words, "--quiet")  # with the tenant's weights from their file
    run("inspect", folder / "run")


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_it_compiles_for_an_absent_tpu(trained, capsys):
    toy, folder = trained
    words = ["--topology", "v5e:2x2", "--effort", "quick", "--json"]
    run("compile", *config(toy, "repae", folder), *words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flops"] > 0
