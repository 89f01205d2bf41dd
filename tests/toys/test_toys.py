"""Tenants of every role, toys that the package does not know among them, in every command."""

import importlib.util
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from runs import assert_continues, make_teacher

from repae_jax.cli import main
from repae_jax.data.latents import open_latents
from repae_jax.runs.build import build_models
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.open_run import load_state
from repae_jax.runs.workdir import load_config

pytestmark = pytest.mark.slow  # each toy trains, and compiles every command's programs

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "configs.py"
TOYS = ("backbone", "condition", "tokenizer", "encoder")  # each is one short file and one row
TOKENIZERS = ("dcae", "rae")  # a deterministic tokenizer, and one with a frozen encoder
TENANTS = (*TOYS, "ddt", "jit", "reg", "rae")
# half a minute each; the tests of their families train, sample and exchange them, too
MORE = ("lightningdit", "dit", "ditdh", "dcae")
if os.environ.get("REPAE_THOROUGH"):
    TENANTS += MORE
NO_VAE = {"tokenizer": "a Patches has no format of diffusers' or LDM's"}
NO_CHECKPOINT = {
    "backbone": "a Mixer with class labels",
    "condition": "a SiT with",
    "lightningdit": "a checkpoint of LightningDiT holds no VAE",
    "dit": "a checkpoint of DiT holds no VAE",
    "ditdh": "a checkpoint of DiTDH holds no VAE",
    "ddt": "a checkpoint of DDT holds no VAE",
    "jit": "a checkpoint of JiT holds no VAE",
    "tokenizer": "this run trains a Patches and its discriminator",
    "dcae": "this run trains a AutoencoderDC and its discriminator",
    "rae": "one latent statistic per channel, but those of a RAE are by position",
}


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def config(toy, recipe, folder, **keys):
    keys = {"teachers.small.weights": folder / "teacher.safetensors", "run.steps": 4} | keys
    # four steps suffice to tell classes apart
    keys |= {"optimizer.backbone.learning_rate": 0.01, "ema_decay": 0.1}
    named = f"{CONFIG}:{toy}-{recipe}"
    return ["--config", named, *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module", params=TENANTS)
def trained(request, teacher, tmp_path_factory):
    """(toy, folder): in the folder, a run of four steps with a checkpoint at the second."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "encoder":
        run("pretrain-teacher", *config(request.param, "", folder), "--quiet")
    else:
        shutil.copy(teacher, folder / "teacher.safetensors")
    run("train", *config(request.param, "repae", folder), "--workdir", folder / "run", "--quiet")
    return request.param, folder


@pytest.mark.parametrize("toy", TOYS)
def test_a_tenant_is_a_short_file(toy):
    assert len((HERE / f"{toy}.py").read_text().splitlines()) <= 40


def test_a_killed_run_continues_bit_by_bit(trained, tmp_path):
    _, folder = trained
    assert_continues(folder / "run", tmp_path / "run")


def test_it_samples_with_guidance(trained, tmp_path):
    """On a RAE's latents classes differ least: by 4 levels at a tenth of this scale."""
    _, folder = trained
    for name, scale in {"plain": 1, "guided": 30_000}.items():
        words = ["--output", tmp_path / f"{name}.npz", "--count", 4, "--guidance-scale", scale]
        run("generate", "--workdir", folder / "run", *words, "--quiet")
    plain, guided = (
        np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int) for name in ("plain", "guided")
    )
    assert np.abs(plain - guided).max() > 10
    run("sample", "--workdir", folder / "run", "--output", tmp_path / "x.png", "--quiet")


def test_it_trains_on_cached_latents(trained, tmp_path):
    toy, folder = trained
    # a seed that would have drawn another tokenizer
    words = config(toy, "repa", folder, **{"tokenizer.weights": folder / "run", "seed": 5})
    run("encode", *words, "--output", tmp_path / "cache", "--teachers", "--quiet")
    words += [f"--config.data.path={tmp_path / 'cache'}", "--config.data.source=latents"]
    run("train", *words, "--workdir", tmp_path / "run", "--quiet")
    width = open_latents(tmp_path / "cache")[0]["latent_std"]
    assert width.any() == (toy not in ("tokenizer", *TOKENIZERS))  # whose latents are points
    source, trained = (restore_latest(path) for path in (folder / "run", tmp_path / "run"))
    assert np.isfinite(trained["ema"]["latent_norm"]["var"]).all()
    for field in ("params", "frozen"):
        tokenizers = (state[field].get("tokenizer", {}) for state in (source, trained))
        jax.tree.map(np.testing.assert_array_equal, *tokenizers)


def test_its_alignment_is_measured(trained, tmp_path):
    _, folder = trained
    words = ["--count", 24, "--times", "0.5", "--output", tmp_path / "alignment"]
    run("evaluate-alignment", "--workdir", folder / "run", *words, "--quiet")
    (file,) = (tmp_path / "alignment").glob("*.json")
    assert np.isfinite(json.loads(file.read_text())["cknna"]["small"]).all()


def test_it_exports_what_others_know(trained, tmp_path, capsys):
    toy, folder = trained
    run("convert", folder / "run", tmp_path / "vae", "--quiet", status=2 if toy in NO_VAE else 0)
    assert (tmp_path / "vae" / "config.json").exists() == (toy not in NO_VAE)
    assert NO_VAE.get(toy, "") in capsys.readouterr().err
    if toy in NO_VAE:
        run("convert", folder / "run", tmp_path / "x.pt", "--to", "vae", "--quiet", status=2)
        assert NO_VAE[toy] in capsys.readouterr().err
    status = 2 if toy in NO_CHECKPOINT else 0
    run("convert", folder / "run", tmp_path / "x.pt", "--quiet", status=status)
    assert NO_CHECKPOINT.get(toy, "") in capsys.readouterr().err
    if toy not in NO_CHECKPOINT:
        run("convert", tmp_path / "x.pt", tmp_path / "imported", "--quiet")
        words = ["--workdir", tmp_path / "imported", "--config.run.steps=5"]
        run("train", *words, "--quiet")  # with the tenant's weights from their file
    run("inspect", folder / "run")


@pytest.mark.parametrize("trained", ["tokenizer"], indirect=True)
def test_what_is_constant_in_a_tokenizer_stays_with_it(trained, tmp_path):
    _, folder = trained
    settings = load_config(folder / "run")
    models, one = build_models(settings), SingleDeviceSharding(jax.devices()[0])
    first, last = (load_state(folder / "run", settings, models, one, step=step) for step in (2, 4))
    basis = last.frozen["tokenizer"]["constants"]["basis"]
    np.testing.assert_array_equal(basis, first.frozen["tokenizer"]["constants"]["basis"])
    assert last.params["tokenizer"].keys() == {"down", "up"}
    assert not np.array_equal(*(s.params["tokenizer"]["down"]["kernel"] for s in (first, last)))
    # what uses the tokenizer alone takes its constants, too
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    words = [tmp_path / "images.npz", "--output", tmp_path / "figures.json", "--quiet"]
    run("evaluate-vae", folder / "run", *words)
    variables = {"params": last.params["tokenizer"], **last.frozen["tokenizer"]}
    latents = models.tokenizer.apply(
        variables, pixels / np.float32(127.5) - 1, method="encode"
    ).mean
    figures = json.loads((tmp_path / "figures.json").read_text())
    np.testing.assert_allclose(figures["latent_std"], np.std(latents, (0, 1, 2)), rtol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
@pytest.mark.parametrize("toy", ["backbone", "tokenizer"])
def test_it_compiles_for_an_absent_tpu(toy, tmp_path, capsys):
    words = ["--topology", "v5e:2x2", "--effort", "quick", "--json"]
    run("compile", *config(toy, "repae", tmp_path), *words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flops"] > 0
