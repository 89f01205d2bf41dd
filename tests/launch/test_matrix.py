"""The matrix of Python and jax versions: the workflow, its script, and the documented results."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"
RESULTS = ROOT / "docs" / "matrix.jsonl"
SCHEMA = ["--builtin-schema", "vendor.github-workflows"]
VERSIONS = ROOT / "benchmarks" / "versions.py"


# Mistakes that the schema of workflows shows.
MISTAKES = (
    ("runs-on:", "run-on:"),
    ("timeout-minutes: 120", "timeout-minutes: soon"),
    ("jobs:\n", "job:\n"),
)


def test_the_workflow_is_valid(tmp_path):
    """The linter accepts it, and rejects each of three copies with a mistake."""
    program = shutil.which("check-jsonschema", path=pathlib.Path(sys.executable).parent)
    assert program, "check-jsonschema is missing: pip install -r requirements-dev.txt"
    text = WORKFLOW.read_text()
    wrong = [tmp_path / f"{number}.yml" for number in range(len(MISTAKES))]
    for path, (old, new) in zip(wrong, MISTAKES, strict=True):
        assert old in text
        path.write_text(text.replace(old, new, 1))
    done = subprocess.run(
        [program, *SCHEMA, "--output-format", "json", WORKFLOW, *wrong],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found.get("parse_errors")
    assert {error["filename"] for error in found["errors"]} == set(map(str, wrong))


@pytest.fixture
def workflow():
    return yaml.safe_load(WORKFLOW.read_text())


def test_the_versions_are_the_same_everywhere(workflow):
    """Those of the workflow, of the script's defaults, and of the package's metadata."""
    script = (ROOT / "launch" / "matrix.sh").read_text()
    pythons, jaxes = (re.search(rf"{name}:-([\d. ]+)}}", script)[1].split()
                      for name in ("PYTHONS", "JAXES"))  # fmt: skip
    absent = [{"python": "3.11", "jax": "0.11"}]  # jax 0.11 needs Python 3.12
    matrix = {"python": pythons, "jax": jaxes, "exclude": absent}
    assert workflow["jobs"]["matrix"]["strategy"]["matrix"] == matrix
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classifiers = "\n".join(project["classifiers"])
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == pythons
    allowed = SpecifierSet(project["requires-python"])
    assert [v for v in ("3.10", *pythons) if v in allowed] == pythons
    (jax,) = re.findall(r"^jax([<>=].*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    around = [f"0.{minor}.0" for minor in range(20)]
    assert [v.rpartition(".")[0] for v in around if v in SpecifierSet(jax)] == jaxes


def test_the_workflow_runs_scripts_that_there_are(workflow):
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"]
                if "run" in step]  # fmt: skip
    assert commands == ["bash launch/matrix.sh", "bash .ci/run"]
    assert all((ROOT / command.split()[1]).is_file() for command in commands)


@pytest.fixture
def checkout(tmp_path):
    """The script beside a Python and a pytest that only write down how they are called."""
    for name in ("launch/matrix.sh", "benchmarks/versions.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "launch" / "environment.sh").write_text(
        """\
make_environment() {
  echo "$PYTHON" "$@" "$(cat "${@: -1}")" >> environments.txt
  mkdir -p "$1/bin" && ln -sf "$PWD/python" "$1/bin/python"
}
"""
    )
    python = tmp_path / "python"
    python.write_text(
        f"""#!/usr/bin/env bash
if [ "$1" = -m ]; then
  echo "${{REPAE_WITHOUT_TORCH:-}}" "$@" >> tests.txt
  [ -e broken ] && exit 4
  cp report.xml "$6"
  exit "$(cat status 2>/dev/null || echo 0)"
fi
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    for version in ("3.11", "3.12", "3.13", "3.8"):
        os.symlink(python, tmp_path / f"python{version}")
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite errors="1" failures="2" skipped="3" tests="10" time="4.6"/>'
        "</testsuites>"
    )
    return tmp_path


OF_THE_SCRIPT = ("PYTHONS", "JAXES", "TORCH", "RESULTS", "TEST_WORKERS", "REPAE_WITHOUT_TORCH")


def run(checkout, *words, **variables):
    # The script that runs these tests may itself have been called with variables of its own.
    outer = {name: value for name, value in os.environ.items() if name not in OF_THE_SCRIPT}
    return subprocess.run(
        ["bash", checkout / "launch" / "matrix.sh", *words],
        env={**outer, "PATH": f"{checkout}:{os.environ['PATH']}", **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_pair_is_tested_and_recorded(checkout):
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    environments = (checkout / "environments.txt").read_text().splitlines()
    files = "requirements.txt requirements-dev.txt requirements-torch.txt"
    pairs = [(p, j) for p in ("3.11", "3.12", "3.13") for j in ("0.10", "0.11")]
    pairs.remove(("3.11", "0.11"))  # jax 0.11 needs Python 3.12
    assert environments == [
        f"python{p} .venv-{p}-{j} {files} .venv-{p}-{j}/jax.txt jax=={j}.*" for p, j in pairs
    ]
    tests = (checkout / "tests.txt").read_text().splitlines()
    assert tests == [
        f" -m pytest -n 2 --junitxml .venv-{p}-{j}/tests.xml -m not slow" for p, j in pairs
    ]
    rows = [json.loads(line) for line in (checkout / "docs" / "matrix.jsonl").open()]
    assert len(rows) == 5
    counts = {"passed": 4, "failed": 3, "skipped": 3, "seconds": 5, "selection": "-m not slow"}
    assert all(counts.items() <= row.items() for row in rows)


def test_one_pair_without_torch_with_words_of_its_own(checkout):
    (checkout / "status").write_text("1")
    pair = dict(PYTHONS="3.13", JAXES="0.11", TORCH="0", RESULTS="mine/results.jsonl")
    assert run(checkout, "tests/test_cli.py", **pair).returncode == 1
    assert "requirements-torch" not in (checkout / "environments.txt").read_text()
    (test,) = (checkout / "tests.txt").read_text().splitlines()
    assert test.startswith("1 -m pytest ")
    assert test.endswith("tests.xml tests/test_cli.py")
    (row,) = [json.loads(line) for line in (checkout / "mine" / "results.jsonl").open()]
    assert row["selection"] == "tests/test_cli.py"
    assert row["torch"] == ""


def test_nothing_is_recorded_of_tests_that_did_not_run(checkout):
    (checkout / "broken").touch()
    done = run(checkout, PYTHONS="3.12 9.9", JAXES="0.10")
    assert done.returncode == 1
    assert "pytest wrote no report" in done.stderr
    assert "error: no Python 9.9 found" in done.stderr
    assert not (checkout / "docs").exists()


def test_the_documented_table_is_that_of_the_results():
    done = subprocess.run(
        [sys.executable, VERSIONS, RESULTS, "--table"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
    assert done.stdout.strip() in (ROOT / "docs" / "matrix.md").read_text()
