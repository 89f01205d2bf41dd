"""launch/environment.sh: environments by uv or pip, made again when the requirements change."""

import pathlib
import subprocess

import pytest
from fake_programs import fake

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
# What pip and uv are called with; both "install" the interpreter that pip runs by.
CALLED = 'echo "$(basename "$0") $*" >> "$CALLS"'
PYTHON = f"""{CALLED}
case "$1 $2" in
  "-c import"*) exit 0 ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac"""
UV = f"""{CALLED}
if [ "$1" = venv ]; then mkdir -p "${{@: -1}}/bin" && touch "${{@: -1}}/bin/python"; fi
[ "$2" = install ] && exit "${{UV_STATUS:-0}}"
exit 0"""
PIP = "python -m pip install --quiet --disable-pip-version-check"
WITH_PIP = ["-m venv e", f"{PIP} -r a.txt -r b.txt --no-compile", f"{PIP} --no-deps --editable ."]
WITH_UV = [
    "uv venv --quiet --seed --allow-existing --python mypython e",
    "uv pip install --quiet --python e/bin/python -r a.txt -r b.txt",
    "uv pip install --quiet --python e/bin/python --no-deps --editable .",
]

NO_BYTECODE = dict(PYTHONDONTWRITEBYTECODE="1")  # at imports, so that all is compiled at once


def make_environment(folder, packages, *, uv=True, **variables):
    """Call launch/environment.sh among stubs; returns what it did and what it called."""
    (folder / "a.txt").write_text("jax\n")
    (folder / "b.txt").write_text(f"{packages}\n")
    (folder / "pyproject.toml").touch()
    (folder / "setup.py").touch()
    (folder / "bin").mkdir(exist_ok=True)
    environment = fake(folder / "bin", "mypython", PYTHON)
    if uv:
        fake(folder / "bin", "uv", UV)
    environment |= {"PATH": f"{folder}/bin:/usr/bin:/bin", "CALLS": f"{folder}/calls"}
    (folder / "calls").write_text("")
    script = f"source {LAUNCH}/environment.sh && make_environment e a.txt b.txt"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False,
        env={**environment, "PYTHON": "mypython", "PYTHONDONTWRITEBYTECODE": "", **variables},
    )  # fmt: skip
    calls = (folder / "calls").read_text().splitlines()
    return done, [call.removeprefix("mypython ") for call in calls if " -c " not in call
                  and "--version" not in call]  # fmt: skip


@pytest.mark.parametrize(
    ("packages", "options", "wanted"),
    [
        ("flax", {}, WITH_UV),
        ("flax", dict(uv=False), WITH_PIP),
        ("flax", dict(INSTALLER="pip"), WITH_PIP),
        ("torch==2.13.0", {}, WITH_PIP),  # uv would take its CUDA build
        ("torch==2.13.0", dict(INSTALLER="uv"), WITH_UV),
        ("timm\n# torch", {}, WITH_UV),
    ],
)
def test_an_environment_is_made_with_uv_where_it_serves(packages, options, wanted, tmp_path):
    done, calls = make_environment(tmp_path, packages, **options)
    assert done.returncode == 0, done.stderr
    assert calls == wanted
    assert make_environment(tmp_path, packages, **options)[1] == []  # nothing has changed
    (tmp_path / "setup.py").write_text("changed")
    assert make_environment(tmp_path, packages, **options)[1] == wanted


def test_modules_are_compiled_at_once_where_imports_keep_no_bytecode(tmp_path):
    calls = make_environment(tmp_path, "flax", uv=False, **NO_BYTECODE)[1]
    assert calls == [call.replace(" --no-compile", "") for call in WITH_PIP]
    (tmp_path / "setup.py").write_text("changed")
    calls = make_environment(tmp_path, "flax", INSTALLER="uv", **NO_BYTECODE)[1]
    assert calls == [call.replace("b.txt", "b.txt --compile-bytecode") for call in WITH_UV]


def test_a_failed_installation_names_the_other_one_and_is_repeated(tmp_path):
    done, calls = make_environment(tmp_path, "flax", UV_STATUS="3")
    assert done.returncode == 1
    assert done.stderr == "error: uv could not install; INSTALLER=pip uses pip\n"
    assert calls == WITH_UV[:2]
    assert make_environment(tmp_path, "flax")[1] == WITH_UV
