"""The study of backbones compares what is comparable."""

import pathlib

import pytest

from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.study.plan import Job, run_config
from repae_jax.study.run import step_flops

FILE = pathlib.Path(__file__).parents[2] / "configs" / "study_backbones.py"
FAMILIES = ("sit", "lightningdit", "dit", "ddt")


def study(size):
    return read_config(f"{FILE}:{size}", [])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["digits", "scenes"])
def test_a_plain_step_of_every_backbone_has_the_same_operations(size, tmp_path):
    plan = study(size)
    for name, tolerance in (("plain", 0.01), ("repae", 0.03)):
        counts = [
            step_flops(run_config(plan, Job(f"{family}_{name}", 0), tmp_path))
            for family in FAMILIES
        ]
        assert max(counts) < (1 + tolerance) * min(counts), (name, counts)


def test_every_backbone_has_the_same_arms_and_claims(tmp_path):
    plan = study("digits")
    assert len(plan.arms) == 2 + 5 * len(FAMILIES)
    assert len(plan.claims) == 6 * len(FAMILIES)
    differing = {"backbone", "name", "objective", "time", "sampling"}
    for arm in ("plain", "repa", "repae", "second", "longer"):
        configs = [
            run_config(plan, Job(f"{family}_{arm}", 0), tmp_path).to_dict() for family in FAMILIES
        ]
        assert [c["backbone"]["family"] for c in configs] == list(FAMILIES)
        for config in configs:
            for name in differing:
                del config[name]
            config["tokenizer"].pop("weights")  # for "second", the VAE that its own REPA-E tuned
        assert all(config == configs[0] for config in configs)


def test_another_size_is_named():
    with pytest.raises(UserError, match=r"study_backbones\.py:huge: there is no such size"):
        study("huge")
