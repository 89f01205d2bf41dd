"""Runs of a study whose states make no numbers: a result that says so, not an end of the study."""

import types

from repae_jax.study import run
from repae_jax.utils.finite import NotFinite


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
    figures, diverged = run._measured(study, None, None, tmp_path, tmp_path, "")
    assert figures == {"2": {"psnr": 20.0}}
    assert diverged == "step 4: image 3: its latents are NaN or infinite from sampling step 2 on"
    assert drawn == [{"psnr": 20.0}]
    assert run._measured(study, None, None, tmp_path, tmp_path, "before")[1] == "before"
