"""Every command on a run of JiT on pixels."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny
from runs import assert_continues

from repae_jax.cli import main
from repae_jax.runs.checkpoints import restore_latest

pytestmark = pytest.mark.slow  # it trains, and compiles every command's programs

CONFIG = """
import sys

sys.path += {path!r}
import tiny

from repae_jax.config import backbone, tokenizer


def get_config(recipe="repa"):
    config = tiny.get_config(recipe)
    config.tokenizer = tokenizer(family="pixels")
    config.backbone = backbone(
        family="jit", patch_size=8, hidden_size=16, depth=3, num_heads=2, bottleneck=6,
        context_tokens=3, context_start=1, encoder_depth=2,
    )
    config.objective.update(least_time=0.05, noise_scale=2.0)
    config.time.update(weighting="lognormal", mean=0.8, scale=0.8)
    config.sampling.update(method="heun", guidance_rule="evaluation", guidance_high=0.9)
    config.optimizer.backbone.learning_rate = 1e-2
    return config
"""


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def words(folder, recipe="repa"):
    weights = folder / "teacher.safetensors"
    given = ["--config", f"{folder / 'config.py'}:{recipe}"]
    return given + ([f"--config.teachers.small.weights={weights}"] if recipe != "vanilla" else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of four steps with a checkpoint at the second."""
    folder = tmp_path_factory.mktemp("pixels")
    path = [str(pathlib.Path(tiny.__file__).parent)]
    (folder / "config.py").write_text(CONFIG.format(path=path))
    run("pretrain-teacher", *words(folder), "--quiet")
    run("train", *words(folder), "--workdir", folder / "run", "--quiet")
    return folder


def test_a_killed_run_continues_bit_by_bit(folder, tmp_path):
    whole = assert_continues(folder / "run", tmp_path / "run")
    np.testing.assert_array_equal(whole["ema"]["latent_norm"]["var"], np.ones(3))


def test_it_trains_without_a_teacher(folder, tmp_path):
    run("train", *words(folder, "vanilla"), "--workdir", tmp_path / "run", "--quiet")
    assert "teachers" not in restore_latest(tmp_path / "run")["frozen"]


def test_it_samples_and_is_measured(folder, tmp_path):
    for name, scale in {"plain": 1, "guided": 3}.items():
        out = ["--output", tmp_path / f"{name}.npz", "--count", 4, "--guidance-scale", scale]
        run("generate", "--workdir", folder / "run", *out, "--quiet")
    plain, guided = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("plain", "guided"))
    assert plain.shape == (4, 32, 32, 3)
    assert np.any(plain != guided)
    run("sample", "--workdir", folder / "run", "--output", tmp_path / "x.png", "--quiet")
    out = ["--count", 24, "--times", "0.5", "--output", tmp_path / "alignment"]
    run("evaluate-alignment", "--workdir", folder / "run", *out, "--quiet")
    (file,) = (tmp_path / "alignment").glob("*.json")
    assert np.isfinite(json.loads(file.read_text())["cknna"]["small"]).all()
    run("report", "--workdir", folder / "run", "--quiet")
    run("inspect", folder / "run")


def test_what_makes_no_sense_is_refused(folder, tmp_path, capsys):
    run("encode", *words(folder), "--output", tmp_path / "cache", "--quiet", status=2)
    assert "'pixels', whose latents are the images" in capsys.readouterr().err
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    out = ["--output", tmp_path / "figures.json", "--quiet"]
    run("evaluate-vae", folder / "run", tmp_path / "images.npz", *out, status=2)
    assert "is trained on pixels, so it has no VAE" in capsys.readouterr().err
    run("convert", folder / "run", tmp_path / "vae", "--quiet", status=2)
    assert "is trained on pixels, so it has no VAE" in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()


def test_it_becomes_a_checkpoint_of_jits_and_a_run_again(folder, tmp_path):
    run("convert", folder / "run", tmp_path / "x.pth", "--quiet")
    again = [tmp_path / "x.pth", tmp_path / "again", *words(folder, "vanilla"), "--quiet"]
    run("convert", *again)
    before, after = (restore_latest(path) for path in (folder / "run", tmp_path / "again"))
    kept = {k: v for k, v in before["params"]["backbone"].items() if k != "projectors_0"}
    jax.tree.map(np.testing.assert_array_equal, kept, after["params"]["backbone"])
    run("train", "--workdir", tmp_path / "again", "--config.run.steps=5", "--quiet")


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_it_compiles_for_an_absent_tpu(folder, capsys):
    run("compile", *words(folder), "--topology", "v5e:2x2", "--effort", "quick", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flops"] > 0
