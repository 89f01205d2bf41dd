"""The wheel: built from the sdist, with exactly its files, and used outside a checkout."""

import configparser
import email
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

import repae_jax

ROOT = pathlib.Path(__file__).parents[1]
BUILT = ("repae_jax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md",
         "LICENSE", "CHANGELOG.md", "CITATION.cff", "requirements.txt")  # fmt: skip
BUILD_SDIST = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
INFO = f"repae_jax-{repae_jax.__version__}.dist-info"
SMALL = """
 --config.batch_size=4 --config.teachers.digits.hidden_size=16 --config.teachers.digits.depth=1
 --config.teachers.digits.pretrain.steps=2 --config.tokenizer.channels=8
 --config.discriminator.filters=4 --config.run.steps=2
 --config.backbone.hidden_size=24 --config.backbone.depth=2 --config.backbone.encoder_depth=1
 --config.projector.hidden=8 --config.run.sample_every=1000
""".split()
# Reads commands from its input and runs them in one process, which imports JAX once.
USE = """\
import json, pathlib, sys

from repae_jax.cli import main
from repae_jax.config.overrides import read_config
from repae_jax.config.packaged import packaged, packaged_folder

for words in json.load(sys.stdin):
    if status := main(words):
        sys.exit(f"{words} ended with {status}")
names = {name: read_config(name, []).name for name in packaged()}
modules = [m for n, m in sys.modules.items() if n.partition(".")[0] == "repae_jax"]
files = sorted({module.__file__ for module in modules})
result = dict(names=names, files=files, folder=str(packaged_folder()))
pathlib.Path("result.json").write_text(json.dumps(result))
"""

pytestmark = pytest.mark.slow  # the package is built


def run(*words, cwd, **options):
    """A command without this test's PYTHONPATH, which has to succeed; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, as a build leaves files beside the package."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # what lies about in a checkout and does not belong into a package
    for stray in ("tests/test_stray.py", "runs/config.json", "docs/page.md", "configs/notes.txt"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text("")
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", BUILD_SDIST, folder, cwd=source)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the sdist, without the network: setuptools is the test environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir",
        folder, sdist, cwd=folder)  # fmt: skip
    (path,) = folder.iterdir()
    return path


def make_environment(folder):
    """An environment with the packages of this one, but for repae_jax; returns its Python.

    A .pth file lends them. Python reads no .pth files in a folder that another one has added, so
    this environment's editable installation of repae_jax stays behind.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd="/")
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    pathlib.Path(purelib.strip(), "lent.pth").write_text("".join(f"{p}\n" for p in sorted(lent)))
    found = "import importlib.util as u; print(u.find_spec('repae_jax'), u.find_spec('jax').name)"
    assert run(python, "-c", found, cwd=folder) == "None jax\n"
    return python


def install(python, *words, cwd):
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps",
        "--no-build-isolation", *words, cwd=cwd)  # fmt: skip


def test_the_wheel_holds_the_package_and_its_configurations(wheel):
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "repae_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in expected if not path.endswith(".py")} == {"repae_jax/py.typed"}
    expected |= {f"repae_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    expected |= {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt",
                                               "entry_points.txt", "licenses/LICENSE")}  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected
        assert archive.read(f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(f"{INFO}/entry_points.txt").decode())
    assert dict(entries["console_scripts"]) == {"repae": "repae_jax.__main__:main"}


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{INFO}/METADATA"))
    assert metadata["Name"] == "repae_jax"
    assert metadata["Version"] == repae_jax.__version__
    assert metadata["License-Expression"] == "MIT"
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    wanted = {str(Requirement(line)) for line in lines if line}
    needs = {Requirement(line) for line in metadata.get_all("Requires-Dist")}
    assert {str(need) for need in needs if not need.marker} == wanted
    extras = {"cuda12", "cuda13", "tpu", "torch", "demo", "wandb"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    for extra in extras:
        assert sum(bool(n.marker) and n.marker.evaluate({"extra": extra}) for n in needs) == 1


def test_the_sdist_builds_the_wheel_and_holds_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(BUILT) <= names
    tops = {name.partition("/")[0] for name in names if name}
    assert tops == {*BUILT, "repae_jax.egg-info", "setup.cfg", "PKG-INFO"}
    assert "configs/notes.txt" not in names


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "repae_jax.__version__"}


def test_the_wheel_works_outside_a_checkout(wheel, tmp_path):
    python = make_environment(tmp_path / "environment")
    install(python, wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    repae = python.parent / "repae"
    assert "usage: " in run(repae, "--help", cwd=empty)
    assert run(repae, "--version", cwd=empty) == f"repae_jax {repae_jax.__version__}\n"
    known = {path.stem for path in (ROOT / "configs").glob("*.py")}
    listed = run(repae, "configs", cwd=empty)
    assert {line.split()[0] for line in listed.splitlines()} == known

    train = ["train", "--config", "digits", "--workdir", "run", *SMALL]
    commands = [
        ["pretrain-teacher", "--config", "digits", *SMALL],
        train,
        ["inspect", "run"],
        ["sample", "--workdir", "run", "--labels", "3,1", "--steps", "2"],
    ]
    run(python, "-c", USE, cwd=empty, input=json.dumps(commands))
    result = json.loads((empty / "result.json").read_text())
    assert set(result["names"]) == known
    site = pathlib.Path(result["folder"]).parent
    assert site.is_relative_to(tmp_path / "environment")
    assert len(result["files"]) > 50
    assert all(pathlib.Path(file).is_relative_to(site) for file in result["files"])
    assert list((empty / "run" / "samples").iterdir())
    assert {path.name for path in empty.iterdir()} == {"run", "runs", "result.json"}


def test_an_editable_installation_reads_the_checkouts_configurations(source, tmp_path):
    python = make_environment(tmp_path / "environment")
    install(python, "--editable", source, cwd=tmp_path)
    added = source / "configs" / "added.py"
    added.write_text('"""Added after the installation."""\n')
    try:
        listed = run(python.parent / "repae", "configs", cwd=tmp_path)
    finally:
        added.unlink()
    assert "added" in listed.split()
    assert "study_digits" in listed.split()
