"""The study of LSGM: each arm's objective is what its title says, and the rest is equal."""

import pathlib

import pytest

from repae_jax.config.overrides import read_config
from repae_jax.study.plan import Job, check, run_config

STUDY = read_config(str(pathlib.Path(__file__).parents[2] / "configs" / "study_lsgm.py"), [])
DIGITS_KL = 2e-5


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("diffusion", dict(stop_gradient=False, kl_weight=DIGITS_KL, prior_weight=0.0)),
        ("entropy", dict(prior_weighting="unweighted", prior_weight=1 / 256, kl_weight=0.0)),
        ("lsgm_uniform", dict(prior_weighting="ll_uniform", prior_weight=DIGITS_KL, kl_weight=0.0)),
        ("lsgm", dict(prior_weighting="ll_iw", prior_weight=DIGITS_KL, kl_weight=0.0)),
    ],
)
def test_the_arms_differ_from_repae_in_what_trains_the_vae(arm, expected, tmp_path):
    ours, repae = (run_config(STUDY, Job(name, 0), tmp_path).to_dict() for name in (arm, "repae"))
    changed = {
        key for key in ours["objective"] if ours["objective"][key] != repae["objective"][key]
    }
    assert changed <= set(expected) | {"tokenizer_alignment"}
    assert ours["objective"] | expected == ours["objective"]
    assert ours["objective"]["tokenizer_alignment"] == 0.0
    for config in (ours, repae):
        del config["objective"], config["name"]
    assert ours == repae


def test_the_study_may_start(tmp_path):
    check(STUDY, tmp_path)
