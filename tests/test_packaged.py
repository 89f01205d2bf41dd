"""The packaged configurations: found by name, listed, printed; files are still accepted."""

import pathlib

import pytest
from runs import TINY

from repae_jax.cli import main
from repae_jax.config.overrides import read_config
from repae_jax.config.packaged import find_file, packaged, packaged_folder, title
from repae_jax.config.storage import to_json
from repae_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def test_a_checkout_has_its_folder_configs():
    assert packaged_folder() == FOLDER
    assert packaged() == {path.stem: path for path in sorted(FOLDER.iterdir()) if path.suffix}


@pytest.mark.parametrize("name", ["digits", "digits:repa", "imagenet256_repae_sdvae"])
def test_a_name_is_its_file_from_any_folder(name, tmp_path, monkeypatch):
    stem, _, recipe = name.partition(":")
    file = f"{FOLDER / stem}.py" + (f":{recipe}" if recipe else "")
    monkeypatch.chdir(tmp_path)
    words = ["--config.run.steps=7"]
    assert to_json(read_config(name, words)) == to_json(read_config(file, words))


def test_a_copy_works_anywhere_and_a_path_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # It reads study_digits, which reads digits_large, which reads digits.
    text = find_file("study_defaults").read_text()
    pathlib.Path("mine.py").write_text(text)
    assert read_config("mine.py", []).to_dict() == read_config("study_defaults", []).to_dict()
    pathlib.Path("digits.py").write_text("def get_config():\n    raise RuntimeError('mine')\n")
    with pytest.raises(UserError, match=r"digits\.py: RuntimeError: mine"):
        read_config("digits.py", [])
    pathlib.Path("digits").write_text("not a configuration")  # such as data of this name
    assert read_config("digits", []).name == "digits"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("digit", "did you mean digits or digits_large or study_digits? "),
        ("configs/digits.py", "did you mean digits or digits_large or study_digits? "),
        ("imagenet256_repa_sdvae", "did you mean imagenet256_repae_sdvae or "),
        ("ddt_e2e_flux", "did you mean imagenet256_ddt_e2e_flux or t2i256_ddt_e2e_flux? "),
        ("elsewhere/zzz.py", "packaged configuration of that name: `python"),
        ("", "packaged configuration of that name: `python"),
        ("/", "packaged configuration of that name: `python"),
    ],
)
def test_an_unknown_name_has_its_nearest(name, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--workdir", "run", "--config", f"{name}:repa"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no config file {name}, nor ")
    assert near in error
    assert error.endswith("`python -m repae_jax configs` lists them\n")
    assert error.count("\n") == 1


def test_the_command_lists_them_and_prints_one(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(packaged())
    assert main(["configs", "digits"]) == 0
    assert capsys.readouterr().out == (FOLDER / "digits.py").read_text()
    assert main(["configs", "digit"]) == 2
    assert "did you mean digits" in capsys.readouterr().err


@pytest.mark.parametrize("path", packaged().values(), ids=lambda path: path.stem)
def test_each_says_in_one_line_what_it_is(path):
    assert 20 < len(title(path)) < 100
    assert title(path)[-1] in ".:"


def test_a_file_is_printed_as_well(capsys):
    assert main(["configs", TINY]) == 0
    assert "def get_config" in capsys.readouterr().out
