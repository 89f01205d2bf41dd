"""What is needed is looked for at once, and all that is missing is said in one line."""

import pathlib
import re
import sys

import numpy as np
import pytest
import tiny
from latent_cache import write_cache
from pictures import write_pictures
from runs import TINY

from repae_jax.cli import main
from repae_jax.config import teacher
from repae_jax.config.needs import check_files
from repae_jax.config.overrides import read_config
from repae_jax.config.validate import validate
from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.study import run as study_run
from repae_jax.study.plan import Job, missing_for_runs
from repae_jax.training import loop
from repae_jax.utils.atomic_files import check_writable

STUDY = str(pathlib.Path(TINY).with_name("tiny_study.py"))


def said(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# --- all that is missing, at once ---


def test_all_missing_files_are_in_one_error(tmp_path, capsys):
    changes = {
        "tokenizer.weights": "vae.pt", "tokenizer.statistics": "stats.pt", "data.path": "pictures",
        "discriminator.weights": "disc.pt", "objective.perceptual_weight": "1.0",
        "evaluation.every": "2", "evaluation.weights": "inception.pth",
    }  # fmt: skip
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    assert main(["train", "--config", TINY, "--workdir", str(tmp_path / "run"), *words]) == 2
    error = said(capsys)
    assert error.startswith(
        "error: 7 things are missing: (1) config.tokenizer.weights is 'vae.pt', "
    )
    for name in ("stats.pt", "disc.pt", "pictures", "inception.pth", "teacher.safetensors"):
        assert f"'{name}', which does not exist" in error
    assert "make it with `python -m repae_jax pretrain-teacher`" in error
    assert "config.lpips.weights (LPIPS's linear heads on VGG16, published at https://" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("repa", {"tokenizer", "teachers"}),
        ("vanilla", {"tokenizer"}),
        ("vae", {"tokenizer", "discriminator", "lpips"}),
        ("repae", {"tokenizer", "discriminator", "lpips", "teachers"}),
    ],
)
def test_only_what_a_recipe_reads_is_missed(recipe, wanted):
    """A frozen tokenizer needs neither its discriminator's weights nor LPIPS'."""
    path = pathlib.Path(__file__).parents[1] / "configs" / "imagenet256_repae_sdvae.py"
    with pytest.raises(UserError) as error:
        check_files(read_config(f"{path}:{recipe}", []))
    named = set(re.findall(r"config\.(\w+)\.[\w.]+ is", str(error.value)))
    assert named - {"data"} == wanted


@pytest.mark.parametrize("lost", ["images.h5", "manifest.json", "h5py"])
def test_data_and_packages_are_in_the_same_error(lost, tmp_path, monkeypatch):
    source, held = {"images.h5": ("hdf5", "images_h5.json"), "manifest.json": ("latents", "x"),
                    "h5py": ("hdf5", "images.h5")}[lost]  # fmt: skip
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / held).touch()
    config = tiny.get_config("repa" if source == "latents" else "repae")
    config.data.update(source=source, path=str(folder))
    config.tokenizer.weights = "vae.pt"
    expected = {
        "images.h5": f"{folder} has no images.h5",
        "manifest.json": f"{folder} holds no packed data set (it has no manifest.json)",
        "h5py": "h5py is not installed: pip install h5py (config.data.source is 'hdf5')",
    }
    monkeypatch.setitem(sys.modules, "torch", None)
    if lost == "h5py":
        monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError) as refused:
        check_files(config)
    error = str(refused.value)
    assert error.startswith("4 things are missing: (1) ")
    for what in ("'vae.pt', which does not exist", "'teacher.safetensors', which does not exist",
                 "torch is not installed: pip install torch (to read config.tokenizer.weights)",
                 expected[lost]):  # fmt: skip
        assert what in error


def test_data_alone_that_are_missing_are_said_when_they_are_opened(tmp_path):
    """Opening them may take a while, and is done once."""
    config = tiny.get_config("vae")
    config.data.update(source="hdf5", path=str(tmp_path))
    check_files(config)


def test_all_missing_sizes_are_in_one_error():
    config = tiny.get_config()
    config.backbone.update(depth=None, num_heads=None)
    with pytest.raises(
        UserError, match=r"config.backbone.depth, config.backbone.num_heads are not set"
    ):
        validate(config)
    config = tiny.get_config()
    config.tokenizer.update(channels=None, multipliers=None)
    with pytest.raises(
        UserError, match=r"tokenizer.channels, config.tokenizer.multipliers are not set"
    ):
        validate(config)
    config = tiny.get_config()
    config.teachers.small.update(depth=None, num_heads=None)
    with pytest.raises(UserError, match=r"small.depth, config.teachers.small.num_heads are not"):
        validate(config)


def test_the_files_of_all_arms_are_looked_for(tmp_path, capsys):
    study = read_config(STUDY, [])
    study.arms["repae"].vae = ""
    study.arms["repae"].changes = {"tokenizer": {"weights": "own.pt"}}
    study.config.discriminator.weights = "disc.pt"
    assert [line.partition(",")[0] for line in missing_for_runs(study, tmp_path)] == [
        "config.discriminator.weights is 'disc.pt'",
        "config.tokenizer.weights is 'own.pt'",
        "config.discriminator.weights is 'disc.pt'",
    ]
    words = ["--config.config.discriminator.weights=disc.pt", "--config.config.data.path=nowhere"]
    assert main(["study", STUDY, "--output", str(tmp_path / "new"), "--quiet", *words]) == 2
    error = said(capsys)
    assert error.startswith("error: 2 things are missing")
    assert "'disc.pt'" in error
    assert "'nowhere'" in error
    assert not (tmp_path / "new").exists()


def test_what_a_study_has_lost_is_named_before_a_run_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_run, "train", None)
    study = read_config(STUDY, [])
    with pytest.raises(UserError, match=r"2 things are missing: .*the teacher small.*the judge"):
        study_run.run_job(study, Job("vae", 0), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("evaluate a.npz --reference b --inception c.pth", ["a.npz does", "b does", "at c.pth"]),
        ("evaluate-vae v.pt images --lpips l.pth --vgg g.pth --inception c.pth",
         ["v.pt: no such", "IMAGES is 'images'", "--lpips is 'l.pth'", "--vgg is", "--inception"]),
        ("evaluate-latents images a=x.pt b=y.pt --output out",
         ["x.pt: no such", "y.pt: no such", "IMAGES is 'images'"]),
    ],
)  # fmt: skip
def test_commands_name_all_that_is_missing(command, missing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--quiet"]) == 2
    error = said(capsys)
    assert error.startswith(f"error: {len(missing)} things are missing: (1) ")
    for name in missing:
        assert name in error
    assert not list(tmp_path.iterdir())


def test_all_lost_shards_are_in_one_error(tmp_path):
    shards = [shard["file"] for shard in write_cache(tmp_path)["shards"]]
    (tmp_path / shards[0]).unlink()
    (tmp_path / shards[2]).write_bytes(b"")
    with pytest.raises(UserError, match=rf"2 of 3 shards are missing .*\({shards[0]}, {shards[2]}"):
        PackedRecords(tmp_path)


# --- needs are checked with the configuration ---


def latent_config(root, **cache):
    write_cache(root / "cache" / "train", **cache)
    config = tiny.get_config("repa")
    (root / "vae.pt").write_bytes(b"")
    config.tokenizer.weights = config.teachers.small.weights = str(root / "vae.pt")
    config.data.update(source="latents", path=str(root / "cache"))
    return config


TOKENS = {"teachers": {"small": "b" * 64}}


def test_an_evaluation_that_needs_images_is_refused_on_latents_without(tmp_path, capsys):
    config = latent_config(tmp_path, **TOKENS)
    check_files(config)
    config.evaluation.update(every=2, network="small")
    with pytest.raises(UserError) as refusal:
        check_files(config)
    message = str(refusal.value)
    assert "(1) config.evaluation.every is 2, and samples are compared with training" in message
    assert (
        "--config.evaluation.reference=PATH, set --config.evaluation.samples=0, or encode"
        in message
    )
    assert "(2) config.evaluation.cknna_images is 1000, but" in message
    assert "has no heldout or validation" in message
    write_cache(tmp_path / "cache" / "heldout")
    with pytest.raises(UserError, match="cknna_images is 1000, but .*heldout keeps no images: set"):
        check_files(config)
    config.evaluation.update(samples=0, cknna_images=0)
    check_files(config)
    work_directory.claim(tmp_path / "run", config)
    words = ["train", "--workdir", str(tmp_path / "run"), "--config.evaluation.samples=90"]
    assert main([*words, "--quiet"]) == 2
    assert "set --config.evaluation.samples=0" in said(capsys)


def test_tokens_that_a_cache_lacks_are_missed_at_once(tmp_path):
    config = latent_config(tmp_path, **TOKENS)
    config.teachers.other = teacher("dinov2-b", weights=config.tokenizer.weights)
    with pytest.raises(UserError, match=r"tokens of the teachers other, small \(it keeps: small\)"):
        check_files(config)


@pytest.fixture
def begun(monkeypatch):
    """Nothing of a run may be made."""

    def fail(*arguments, **options):
        raise AssertionError("too late")

    monkeypatch.setattr(loop, "initial_state", fail)


def test_held_out_images_that_are_not_there_are_missed_at_once(tmp_path, begun, capsys):
    write_pictures(tmp_path / "data", {f"c/{number}.png": (32, 32, "RGB") for number in range(8)})
    words = ["--config.data.source=folder", f"--config.data.path={tmp_path / 'data'}"]
    words += ["--config.data.num_classes=1", "--config.teachers.small.weights=" + TINY]
    words += ["--config.evaluation.every=2", "--config.evaluation.samples=0"]
    arguments = ["train", "--config", TINY, "--workdir", str(tmp_path / "run"), *words, "--quiet"]
    assert main(arguments) == 2
    error = said(capsys)
    assert "has no heldout or validation" in error
    assert "or set --config.evaluation.cknna_images=0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["inception", "reference"])
def test_files_of_the_evaluation_are_read_before_a_run_begins(wrong, tmp_path, begun, capsys):
    (tmp_path / "inception.pth").write_bytes(b"no weights")
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    words = {
        "inception": [f"--config.evaluation.weights={tmp_path / 'inception.pth'}"],
        "reference": ["--config.evaluation.network=small",
                      f"--config.evaluation.reference={tmp_path / 'other.npz'}"],
    }[wrong]  # fmt: skip
    words += ["--config.teachers.small.weights=" + TINY, "--config.evaluation.every=2"]
    arguments = ["train", "--config", TINY, "--workdir", str(tmp_path / "run"), *words, "--quiet"]
    assert main(arguments) == 2
    expected = {"inception": "inception.pth", "reference": "features of 2048 dimensions"}[wrong]
    assert expected in said(capsys)
    assert not (tmp_path / "run").exists()


def test_a_report_misses_its_images_before_it_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repae_jax.runs.open_run.open_run", None)
    config = tiny.get_config()
    config.data.update(source="folder", path=str(tmp_path / "data"), num_classes=1)
    write_pictures(tmp_path / "data", {"c/1.png": (32, 32, "RGB")})
    work_directory.claim(tmp_path / "run", config)
    assert main(["report", "--workdir", str(tmp_path / "run"), "--quiet"]) == 2
    assert "has no heldout or validation" in said(capsys)


def test_the_second_vae_is_missed_before_the_first_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repae_jax.evaluation.latent_spaces.measure_latents", None)
    write_pictures(tmp_path / "data", {"1.png": (32, 32, "RGB")})
    words = ["evaluate-latents", str(tmp_path / "data"), f"one={TINY}", "two=none.pt"]
    assert main([*words, "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "none.pt: no such file or folder" in said(capsys)


def test_where_figures_cannot_be_written_is_said_first(tmp_path):
    check_writable(tmp_path / "new" / "figures.json")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/figures.json cannot be written"):
        check_writable(tmp_path / "file" / "figures.json")
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_writable(tmp_path)
