"""Runs of a study whose states make no numbers: a result that says so, not an end of the study."""

import json
import types

import numpy as np
import pytest
import tiny_study

from repae_jax.errors import UserError
from repae_jax.study import measures, run, shared
from repae_jax.study.plan import Job, run_config
from repae_jax.utils.finite import NotFinite
from repae_jax.utils.sealed import seal


class Measures:
    """Figures of the states before step 4, which makes NaN."""

    def __init__(self, *_):
        pass

    def __call__(self, state):
        if state.step == 4:
            raise NotFinite("image 3: its latents are NaN or infinite from sampling step 2 on")
        return types.SimpleNamespace(figures={"psnr": 10.0 * state.step})


class State:
    frozen = {}  # noqa: RUF012

    def __init__(self, step):
        self.step = step

    def replace(self, **_):
        return self


@pytest.mark.parametrize("rows", [np.ones((20, 4)), np.full((20, 4), np.nan)])
def test_a_collapsed_run_has_no_cknna(rows, monkeypatch, capsys):
    teacher = np.random.default_rng(0).normal(size=(20, 3))
    features = types.SimpleNamespace(backbone={0.5: rows[None]}, teachers={"x": teacher})
    monkeypatch.setattr(measures, "extract_features", lambda *_, **__: features)
    measured = object.__new__(measures.Measures)
    measured._wanted = types.SimpleNamespace(cknna_time=0.5)
    measured._models = types.SimpleNamespace(backbone=types.SimpleNamespace(encoder_depth=1))
    measured._config = measured._source = measured._count = measured._extract = None
    figures = {}
    measured._measure_alignment(None, figures)
    assert figures == {}
    assert "CKNNA with the teacher x is left out" in capsys.readouterr().err


def test_figures_end_where_a_state_makes_no_numbers(tmp_path, monkeypatch):
    drawn = []
    for name, stand_in in {
        "Measures": Measures,
        "build_models": lambda config: types.SimpleNamespace(backbone=None),
        "saved_steps": lambda workdir: [2, 4, 6],
        "load_state": lambda *_, step: State(step),
        "_draw": lambda seen, *_: drawn.append(seen.figures),
    }.items():
        monkeypatch.setattr(run, name, stand_in)
    study = types.SimpleNamespace(measured_at=[2, 4, 6])
    figures, diverged = run._measure(study, None, None, tmp_path, tmp_path, "")
    assert figures == {"2": {"psnr": 20.0}}
    assert diverged == "step 4: image 3: its latents are NaN or infinite from sampling step 2 on"
    assert drawn == [{"psnr": 20.0}]
    assert run._measure(study, None, None, tmp_path, tmp_path, "before")[1] == "before"


# --- a result that is there already ---

JOB = Job("vae", 0)


@pytest.fixture
def result(tmp_path):
    """result(changes): writes a run's result with them, sealed or not, and reads it."""
    study, path = tiny_study.get_config(), JOB.workdir(tmp_path) / "result.json"
    path.parent.mkdir(parents=True)
    made = {
        "arm": "vae", "seed": 0, "gflop_per_image": 0.5, "accuracies": {}, "diverged": "",
        "config": run._within(tmp_path, run_config(study, JOB, tmp_path).to_dict()),
        "figures": {"2": {"psnr": 1.5}, "4": {"psnr": 2.5}},
    }  # fmt: skip

    def result(changes=None, change=lambda data: data, seal=seal):
        path.write_bytes(change(json.dumps(seal({**made, **(changes or {})})).encode()))
        return run.read_result(study, JOB, tmp_path)

    result.path, result.figures = path, made["figures"]
    return result


def test_a_flipped_bit_of_a_result_is_damage(result):
    result(seal=dict)
    whole = result.path.read_bytes()
    for place in range(0, len(whole), 11):

        def flip(data, place=place):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            return bytes(changed)

        if flip(whole).lower() == whole.lower():  # 1E-06 is 1e-06
            continue
        with pytest.raises(UserError, match=r"result\.json .*, the run is measured again"):
            result(change=flip)


def test_a_result_of_before_checksums_is_read(result):
    assert result(seal=dict)["figures"] == result()["figures"] == result.figures
    with pytest.raises(UserError, match="diverged is missing"):
        result(change=lambda data: data.replace(b"diverged", b"eiverged"), seal=dict)


def test_a_result_without_a_measured_step_is_refused(result):
    early = {"2": {"psnr": 1.5}}
    with pytest.raises(UserError, match="has no figures of step 4, at which the study measures"):
        result({"figures": early})
    assert result({"figures": early, "diverged": "step 3: NaN"})["figures"] == early


def test_what_is_no_file_is_no_missing_result(result):
    result()
    result.path.unlink()
    result.path.symlink_to("nowhere")
    with pytest.raises(UserError, match="cannot be read .No such file"):
        run.read_result(tiny_study.get_config(), JOB, result.path.parents[2])


def test_a_study_of_version_1_is_the_same_study(tmp_path):
    study = tiny_study.get_config()
    common = shared._common(study)
    entry = common["config"]["teachers"]["small"]
    del entry["family"]
    entry["stem"] = None
    (tmp_path / "study.json").write_text(json.dumps(common))
    shared.check_shared(study, tmp_path)
    entry["depth"] = 5
    (tmp_path / "study.json").write_text(json.dumps(common))
    with pytest.raises(UserError, match=r"another study: config.config.teachers.small.depth: 5 ->"):
        shared.check_shared(study, tmp_path)
