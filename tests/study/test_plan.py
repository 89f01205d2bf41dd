import math
import pathlib

import pytest
from ml_collections import ConfigDict

from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.study.plan import Job, arm, check, claim, jobs, run_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
OUTPUT = pathlib.Path("out")


@pytest.fixture
def study() -> ConfigDict:
    return read_config(str(CONFIGS / "study_digits.py"), [])


def test_the_studies_of_the_house_are_possible():
    files = [str(path) for path in sorted(CONFIGS.glob("study_*.py"))]
    assert len(files) >= 2
    for file in [*files, f"{CONFIGS / 'study_scenes.py'}:small"]:
        check(read_config(file, []), OUTPUT)


def test_a_size_that_a_study_does_not_have_is_named():
    with pytest.raises(UserError, match="study_scenes.py:huge: there is no such size"):
        read_config(f"{CONFIGS / 'study_scenes.py'}:huge", [])


def test_an_arm_differs_from_the_base_in_what_it_says_alone(study):
    repae = run_config(study, Job("repae", 3), OUTPUT)
    small = run_config(study, Job("repa_small", 3), OUTPUT)
    assert small.backbone.depth == 4
    for config in (repae, small):
        assert config.seed == 3
        config.backbone = study.config.backbone
        config.tokenizer.weights = config.name = ""
    repae.train = small.train
    repae.objective.latent_norm = small.objective.latent_norm
    assert repae.to_dict() == small.to_dict()
    assert study.config.seed == 0  # the study's own stays as it is


def test_a_run_comes_behind_the_one_whose_vae_it_takes_of_the_same_seed(study):
    order = jobs(study)
    assert len(order) == len(set(order)) == study.seeds * len(study.arms)
    for position, job in enumerate(order):
        before = study.arms[job.arm].vae
        if before:
            needed = Job(before, job.seed)
            assert needed in order[:position]
            weights = run_config(study, job, OUTPUT).tokenizer.weights
            assert weights == str(needed.workdir(OUTPUT))
    assert [job.seed for job in order] == sorted(job.seed for job in order)


def test_a_stage_behind_a_tuned_vae_has_draws_of_its_own(study):
    seeds = {arm: run_config(study, Job(arm, 3), OUTPUT).seed for arm in study.arms}
    assert seeds["vae"] == seeds["repae"] == seeds["repa"] == seeds["sit"] == 3
    assert seeds["second"] == seeds["second_longer"] == seeds["second_small"]
    assert seeds["second"] not in range(study.seeds)


def test_published_teachers_keep_their_weights(study):
    study.config.teachers.digits.weights = "published.pth"
    assert run_config(study, Job("repae", 0), OUTPUT).teachers.digits.weights.startswith("out")
    study.config.teachers.digits.pretrain.steps = 0
    assert run_config(study, Job("repae", 0), OUTPUT).teachers.digits.weights == "published.pth"


def test_scenes_that_are_rendered_once_lie_in_the_studys_folder():
    study = read_config(f"{CONFIGS / 'study_scenes.py'}:small", [])
    study.config.data.name = "24000"
    data = run_config(study, Job("sit", 0), OUTPUT).data
    assert (data.source, data.path, data.name) == ("packed", str(OUTPUT / "data"), "")
    study.rendered.update(train=0, heldout=0)
    data = run_config(study, Job("sit", 0), OUTPUT).data
    assert (data.source, data.path, data.name) == ("scenes", "", "24000")


def test_scenes_of_one_split_alone_are_refused():
    study = read_config(f"{CONFIGS / 'study_scenes.py'}:small", [])
    study.rendered.heldout = 0
    with pytest.raises(UserError, match="rendered is .*: give both splits at least 1, or both 0"):
        check(study, OUTPUT)


def test_every_measured_step_is_a_checkpoint_that_stays(study):
    study.measured_at = (200, 500, 600)
    run = run_config(study, Job("repae", 0), OUTPUT).run
    assert (run.steps, run.checkpoint_every, run.keep_every) == (600, 100, 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"measured_at": ()}, r"measured_at is \(\)"),
        ({"measured_at": (20, 10)}, r"measured_at is \(20, 10\): give rising steps"),
        ({"measured_at": ("all",)}, r"measured_at is \('all',\)"),
        ({"measured_at": (333, 1000)}, "a run keeps a checkpoint every 1 steps"),
        (
            {"rendered": {"train": 9, "heldout": 9}},
            "rendered is .*, but config.data.source is 'digits'",
        ),
        ({"judge.channels": (30, 64)}, r"judge.channels is \(30, 64\): give multiples of 8"),
        ({"judge.steps": 0}, "judge.steps is 0"),
        ({"judge.batch_size": 0}, "judge.batch_size is 0"),
        ({"judge.learning_rate": math.inf}, "judge.learning_rate is inf: it must be a finite"),
        ({"judge.weight_decay": math.nan}, "judge.weight_decay is nan: it must be a finite"),
        ({"measures.samples": 3}, "measures.samples is 3: give at least 4"),
        ({"measures.heldout": 10}, "measures.heldout is 10: give at least 11"),
        ({"measures.cknna_time": 7.0}, "measures.cknna_time is 7.0: give 0 to 1"),
        ({"arms": {}}, "the study has no arms"),
        ({"arms": {"x": arm("", "repea")}}, "arm x: no recipe 'repea'"),
        ({"arms": {"x": arm("", vae="y")}}, "arm x: there is no arm 'y'"),
        ({"arms": {"x": arm("", vae="y"), "y": arm("", vae="x")}}, "arm x: its VAE is its own"),
        ({"arms": {"x": arm("", changes={"backbone": {"width": 1}})}}, "arm x: .*width"),
        ({"arms": {"x": arm("", changes={"batch_size": 0})}}, "arm x: config.batch_size is 0"),
        ({"claims": {"c": claim("", "fid", "repae", "repa")}}, "claim c: no measure 'fid'"),
        ({"claims": {"c": claim("", "psnr", "repae", "other")}}, "claim c: no arm 'other'"),
    ],
)
def test_what_is_impossible_is_named(study, changes, message):
    with study.ignore_type():
        for key, value in changes.items():
            value = ConfigDict(value) if isinstance(value, dict) else value
            study.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        check(study, OUTPUT)
