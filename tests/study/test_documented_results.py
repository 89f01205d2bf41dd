"""docs/results.md shows what the runs beside it found."""

import pathlib

import pytest

from repae_jax.config.overrides import read_config
from repae_jax.config.storage import differences
from repae_jax.config.versions import upgrade
from repae_jax.study.plan import Job, run_config
from repae_jax.study.report import tables
from repae_jax.study.results import read_results

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs").glob("study_*.py"), reverse=True)
RUNS = sorted((ROOT / "docs").glob("study_*.jsonl"))


def study_of(runs):
    """The study that runs are of: NAME.jsonl of NAME.py, NAME_SIZE.jsonl of NAME.py:SIZE."""
    file = next(file for file in STUDIES if runs.stem.startswith(file.stem))
    size = runs.stem.removeprefix(file.stem).removeprefix("_")
    return read_config(f"{file}:{size}" if size else str(file), [])


def test_there_are_results():
    assert RUNS


each = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)


@each
def test_the_runs_are_those_of_the_study_as_it_is(path):
    """But for keys that were not there when they ran."""
    study = study_of(path)
    for result in read_results(path):
        config = run_config(study, Job(result["arm"], result["seed"]), pathlib.Path()).to_dict()
        told = differences(upgrade(result["config"], source=str(path)), config)
        assert [line for line in told if ": None ->" not in line] == []


@each
def test_the_document_shows_the_tables_of_its_runs(path):
    study = study_of(path)
    results = read_results(path)
    assert {r["arm"] for r in results} == set(study.arms)
    assert tables(study, results) in (ROOT / "docs" / "results.md").read_text()


def test_what_two_studies_ran_came_out_the_same():
    """The defaults' first arm is the digits' "from scratch", trained anew with all it needs."""
    figures = {
        (run["arm"], run["seed"]): run["figures"]
        for name in ("digits", "defaults")
        for run in read_results(ROOT / "docs" / f"study_{name}.jsonl")
    }
    both = [seed for arm, seed in figures if arm == "default"]
    assert len(both) >= 2
    for seed in both:
        assert figures["default", seed] == figures["scratch", seed]
