"""Studies whose runs take captions."""

import pathlib

import jax
import numpy as np
import pytest
import tiny_described_study

from repae_jax.cli import main
from repae_jax.config.modules import build_text_encoder
from repae_jax.config.overrides import read_config
from repae_jax.data.described_prompts import render_prompt
from repae_jax.data.geneval_metadata import TAGS
from repae_jax.data.tokens import grammar_tokenizer
from repae_jax.errors import UserError
from repae_jax.evaluation.described_judge import DescribedJudge
from repae_jax.evaluation.geneval import Detection
from repae_jax.models.text_encoders.base import initial_variables
from repae_jax.runs.open_run import open_run
from repae_jax.study.judge import Asked, PromptJudge
from repae_jax.study.plan import Job, check, run_config
from repae_jax.study.results import read_results

STUDY = str(pathlib.Path(tiny_described_study.__file__))
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    output = tmp_path_factory.mktemp("study")
    assert main(["study", STUDY, "--output", str(output), "--quiet", "--jobs", "1"]) == 0
    return output


@pytest.mark.slow  # two text encoders, a teacher, a judge, and three runs
def test_it_runs_measures_and_reports(done):
    results = {r["arm"]: r for r in read_results(done / "results.jsonl")}
    assert set(results) == {"vae", "repa", "words"}
    for arm in ("repa", "words"):
        assert {*TAGS, "prompts", "unseen", "frechet", "psnr"} < set(results[arm]["figures"]["2"])
    assert "prompts" not in results["vae"]["figures"]["2"]
    tables = (done / "tables.md").read_text()
    assert "position needs order" in tables
    assert "class_accuracy" not in tables


@pytest.mark.slow
def test_an_arm_that_changes_the_text_encoder_has_its_own(done):
    own = done / "text_encoder_words"
    assert (done / "text_encoder" / "model.safetensors").is_file()
    assert (own / "model.safetensors").is_file()
    opened = open_run(Job("words", 0).workdir(done))
    assert opened.config.text_encoder.weights == str(own)
    assert set(opened.state.frozen["text_encoder"]["params"]) == {
        "embedding",
        "norm",
        "whitening",
    }


@pytest.mark.slow
def test_a_text_encoder_that_is_gone_is_named(done, tmp_path, capfd):
    file = done / "text_encoder_words" / "model.safetensors"
    moved = file.rename(tmp_path / "moved")
    try:
        assert main(["study", STUDY, "--output", str(done), "--quiet"]) == 2
        assert f"{file} is gone, with which the results" in capfd.readouterr().err
    finally:
        moved.rename(file)


@pytest.mark.slow
def test_another_text_encoder_is_another_study(done, capsys):
    change = "--config.config.text_encoder.pretrain.steps=3"
    assert main(["study", STUDY, "--output", str(done), "--quiet", change]) == 2
    assert "config.text_encoder.pretrain.steps: 2 -> 3" in capsys.readouterr().err


def test_without_blocks_a_state_depends_on_its_word_alone():
    """The control's encoder, and the study's beside it."""
    study = read_config(str(ROOT / "configs" / "study_described.py"), [])
    tokenizer = grammar_tokenizer()
    captions = ("a red disc left of a blue star", "a blue star left of a red disc")
    ids = np.array([tokenizer.encode(text).ids for text in captions])
    for arm, same in (("words", True), ("repa", False)):
        encoder = build_text_encoder(run_config(study, Job(arm, 0), ROOT))
        variables = initial_variables(encoder, jax.random.key(0))
        states = np.asarray(encoder.apply(variables, ids, np.ones(ids.shape, bool)))
        first, second = (
            states[row][np.argsort(ids[row], kind="stable")] for row in range(len(captions))
        )
        assert np.array_equal(first, second) == same


def test_the_study_is_valid():
    check(read_config(str(ROOT / "configs" / "study_described.py"), []), ROOT / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures.samples": 5}, "measures.samples is 5: give at least 6"),
        ({"judge.renders": 0}, "judge.renders is 0"),
        ({"config.data.source": "scenes"}, "the judge of captions knows 'described' alone"),
        ({"rendered.train": 0}, "give both splits at least 1"),
    ],
)
def test_mistakes_are_named(changes, message):
    study = read_config(STUDY, [])
    for key, value in changes.items():
        study.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        check(study, ROOT / "runs")


def test_the_judge_of_prompts_counts_what_fits(monkeypatch):
    """Half of the images of each tag show their prompts, by a detector that knows the truth."""
    judge = PromptJudge(DescribedJudge({}, 1.0))
    study = read_config(STUDY, [])
    monkeypatch.setattr("repae_jax.study.judge.make_tokenize", lambda config: _ids)
    asked = judge.ask(study.config, 48)
    assert len(asked.rows) == len(asked.prompts) == 48
    rendered = [render_prompt(it["prompt"], n) for n, it in enumerate(asked.prompts)]

    def detect(self, images):
        return [[] if number % 2 else _truth(shown) for number, shown in enumerate(rendered)]

    monkeypatch.setattr(DescribedJudge, "__call__", detect)
    monkeypatch.setattr(DescribedJudge, "features", lambda self, images: images.mean((1, 2)))
    images = np.stack([shown.image for shown in rendered])
    _, figures = judge.compare(images, asked)
    assert {tag: figures[tag] for tag in TAGS} == dict.fromkeys(TAGS, 0.5)
    assert figures["prompts"] == 0.5
    assert isinstance(asked, Asked)


def _ids(prompt):
    return {"caption_ids": np.zeros(4, np.int32), "caption_length": np.int32(1)}


def _truth(shown):
    things = [thing for thing in shown.scene.things for _ in range(thing.count)]
    return [
        Detection(thing.shape, box, thing.color, 1.0)
        for thing, box in zip(things, shown.boxes, strict=True)
    ]
