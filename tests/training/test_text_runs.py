"""Runs with captions through the commands: training, resumption, samples, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import tiny_text
from captioned import write_captioned
from PIL import Image
from runs import assert_continues

from repae_jax import Pipeline
from repae_jax.cli import main
from repae_jax.config.modules import build_text_encoder
from repae_jax.config.overrides import read_config
from repae_jax.data.sources import open_source
from repae_jax.data.tokens import Tokenize
from repae_jax.errors import UserError
from repae_jax.interop.text_encoder import read_text_encoder
from repae_jax.models.networks import condition_of
from repae_jax.models.text_encoders.base import caption_mask
from repae_jax.runs.build import build_models
from repae_jax.runs.captions import captions_of, make_tokenize, tokenized, warn_of_cut_prompts
from repae_jax.runs.open_run import open_run, sampling_weights
from repae_jax.runs.workdir import load_config

pytestmark = pytest.mark.slow  # each trains a tiny run, or compiles its sampler

PROMPTS = ("a red disc left of a blue star", "two green rings", "a red disc left of a blue star")


def run(*words, status=0):
    assert main([str(word) for word in words]) == status


def config(folder, recipe="repae", **keys):
    keys = {"text_encoder.weights": folder / "lm", "run.steps": 4} | keys
    keys = {"teachers.small.weights": folder / "teacher.safetensors"} | keys
    named = f"{tiny_text.CONFIG}:{recipe}"
    return ["--config", named, *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with text encoder, teacher, and a run of four steps, saved at the second as well."""
    folder = tmp_path_factory.mktemp("text")
    run("pretrain-text-encoder", *config(folder), "--quiet")
    run("pretrain-teacher", *config(folder), "--quiet")
    run("train", *config(folder), "--workdir", folder / "run", "--quiet")
    return folder


def test_the_text_encoders_states_are_whitened(folder):
    made = read_config(tiny_text.CONFIG, [])
    encoder = build_text_encoder(made)
    variables = read_text_encoder(folder / "lm", encoder)
    inputs = tokenized(
        Tokenize(str(folder / "lm" / "tokenizer.json"), encoder.length, encoder.pad_id),
        captions_of(open_source(made.data, "train"), 64),
    )
    mask = np.asarray(caption_mask(inputs["caption_ids"], inputs["caption_length"]))
    states = np.asarray(encoder.apply(variables, inputs["caption_ids"], mask))[mask]
    np.testing.assert_allclose(states.mean(0), 0, atol=1e-3)
    variances = np.linalg.eigvalsh(np.cov(states.T))
    np.testing.assert_allclose(variances[-8:], 1, atol=0.05)


@pytest.fixture(scope="module")
def prompts(folder):
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def generate(folder, output, *words, status=0):
    words = ["--output", output, "--guidance-scale", 3, *words, "--quiet"]
    run("generate", "--workdir", folder / "run", *words, status=status)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_inspect_names_the_text_encoder(folder, capsys):
    run("inspect", folder / "run")
    assert "CausalLM" in capsys.readouterr().out


def test_a_killed_run_continues_bit_by_bit(folder, tmp_path):
    assert_continues(folder / "run", tmp_path / "run")


def test_the_null_condition_is_the_state_of_the_empty_caption(folder):
    trained = open_run(folder / "run")
    weights = sampling_weights(trained.state)
    inputs = tokenized(make_tokenize(trained.config), [""])
    expected = condition_of(trained.models, weights, inputs)
    assert expected["mask"].sum() == 1  # <bos> alone
    for name, values in weights["null_condition"].items():
        np.testing.assert_allclose(values, expected[name][0], rtol=1e-5, atol=1e-6)


def test_an_image_follows_its_prompt_and_number_alone(folder, prompts, tmp_path):
    generate(folder, tmp_path / "all", "--prompts", prompts, "--images-per-prompt", 2)
    (tmp_path / "one.txt").write_text(PROMPTS[1])
    generate(folder, tmp_path / "one", "--prompts", tmp_path / "one.txt", "--batch-size", 1)
    images = {path.name: picture(path) for path in (tmp_path / "all").glob("*.png")}
    assert sorted(images) == [f"{prompt:05d}_{image:02d}.png" for prompt in range(3)
                              for image in range(2)]  # fmt: skip
    assert abs(images["00001_00.png"] - picture(tmp_path / "one" / "00000_00.png")).max() <= 1
    different = np.stack(list(images.values()))
    assert len(np.unique(different.reshape(6, -1), axis=0)) == 6  # also of the prompt that returns
    lines = (tmp_path / "all" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == list(PROMPTS)


def test_the_words_change_the_image(folder, tmp_path):
    for name, text in {"a": "a red disc", "b": "three white arrows"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    images = []
    for name in "ab":
        words = ["--prompts", tmp_path / f"{name}.txt", "--guidance-scale", 30]
        generate(folder, tmp_path / name, *words)
        images.append(picture(tmp_path / name / "00000_00.png"))
    assert abs(images[0] - images[1]).max() > 8


def test_a_negative_prompt_takes_the_place_of_the_empty_one(folder, prompts, tmp_path):
    found = {}
    for name, text in {"plain": None, "empty": "", "other": "three white arrows"}.items():
        words = [] if text is None else ["--negative-prompt", text]
        generate(folder, tmp_path / name, "--prompts", prompts, "--guidance-scale", 1000, *words)
        found[name] = picture(tmp_path / name / "00000_00.png")
    assert abs(found["plain"] - found["empty"]).max() <= 1
    assert abs(found["plain"] - found["other"]).max() > 1


def test_a_killed_command_ends_with_the_same_files(folder, tmp_path):
    content = {f"item{number}": text for number, text in enumerate(PROMPTS)}
    (tmp_path / "dpg.json").write_text(json.dumps(content))
    words = ["--prompts", tmp_path / "dpg.json", "--layout", "dpg", "--batch-size", 6]
    generate(folder, tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.copy(tmp_path / "whole.json", tmp_path / "cut.json")
    (tmp_path / "cut" / "item1.png").unlink()  # its images are in the batches 0 and 1
    generate(folder, tmp_path / "cut", *words)
    for name in content:
        files = [(tmp_path / which / f"{name}.png").read_bytes() for which in ("whole", "cut")]
        assert files[0] == files[1]
    assert picture(tmp_path / "whole" / "item0.png").shape == (64, 64, 3)  # two by two
    generate(folder, tmp_path / "cut", *words, "--negative-prompt", "a ring", status=2)


def test_sample_shows_prompts_beside_their_images(folder, tmp_path, capsys):
    words = ["--workdir", folder / "run", "--output", tmp_path / "x.png", "--quiet"]
    run("sample", *words, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1])
    given = picture(tmp_path / "x.png").shape
    run("sample", *words)  # the captions of the data
    assert picture(tmp_path / "x.png").shape[0] > 3 * given[0]
    run("sample", *words, "--labels", "3", status=2)
    assert "the run is one of captions" in capsys.readouterr().err


def test_report_of_a_run_on_cached_latents(folder, tmp_path):
    """It has no images of its own: --images names some."""
    repa = config(folder, "repa", **{"tokenizer.weights": folder / "run"})
    run("encode", *repa, "--text", "--teachers", "--output", tmp_path / "latents", "--quiet")
    cached = ("--config.data.source=latents", f"--config.data.path={tmp_path / 'latents'}")
    run("train", *repa, *cached, "--workdir", tmp_path / "run", "--quiet")
    run("report", "--workdir", tmp_path / "run", "--quiet")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "One row a caption of the training images" in page
    assert "PSNR" not in page
    side = str(read_config(tiny_text.CONFIG, []).data.resolution)
    heldout = ("--resolution", side, "--split", "heldout", "--quiet")
    run("prepare", "described:12", tmp_path / "images" / "heldout", *heldout)
    words = ("--workdir", tmp_path / "run", "--images", tmp_path / "images", "--quiet")
    run("report", *words)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "One row a held-out caption" in page
    assert "Mean PSNR over 12 held-out images" in page


def test_report_and_alignment(folder, tmp_path):
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    run("report", "--workdir", copy, "--quiet")
    assert "One row a held-out caption" in (copy / "report.html").read_text()
    words = ["--count", 24, "--times", "0.5", "--output", tmp_path / "alignment", "--quiet"]
    run("evaluate-alignment", "--workdir", copy, *words)
    (file,) = (tmp_path / "alignment").glob("*.json")
    assert np.isfinite(json.loads(file.read_text())["cknna"]["small"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition.family": "class"}, "reads no captions"),
        ({"data.flip": True}, "left or right"),
        ({"data.source": "digits", "data.num_classes": 10}, "has no captions"),
        ({"text_encoder.hidden_size": 32}, "another text encoder: dim is 16"),
        ({"text_encoder.vocabulary": 200}, "has ids up to 302"),
        ({"text_encoder.weights": "nothing"}, "pretrain-text-encoder"),
        ({"text_encoder.family": "clip_text"}, "config.text_encoder"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(folder, tmp_path, capsys, changes, message):
    run("train", *config(folder, **changes), "--workdir", tmp_path / "x", "--quiet", status=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_prompts_for_a_run_that_takes_none(folder, prompts, tmp_path, capsys):
    generate(folder, tmp_path / "x", status=2)
    assert "--prompts FILE" in capsys.readouterr().err
    generate(folder, tmp_path / "x", "--prompts", prompts, "--count", 3, status=2)
    assert "--images-per-prompt" in capsys.readouterr().err
    generate(folder, tmp_path / "x.npz", "--prompts", prompts, status=2)
    assert "take a folder" in capsys.readouterr().err
    generate(folder, tmp_path / "x", "--prompts", prompts, "--layout", "genai", status=2)
    assert str(prompts) in capsys.readouterr().err


def test_a_foreign_tokenizer_is_refused(folder, tmp_path, capsys):
    from repae_jax.data.tokens import train_tokenizer

    other = tmp_path / "tokenizer.json"
    tokenizer = train_tokenizer(["a red disc", "a ring"], 300)
    tokenizer.post_processor = None  # without <bos>
    tokenizer.save(str(other))
    words = config(folder, **{"text_encoder.tokenizer": other})
    run("train", *words, "--workdir", tmp_path / "x", "--quiet", status=2)
    assert "turns the empty caption into []" in capsys.readouterr().err


def test_a_batch_of_captions_is_the_tokenizers(folder):
    loaded = load_config(folder / "run")
    tokenize = make_tokenize(loaded)
    assert isinstance(tokenize, Tokenize)
    assert build_models(loaded).text_encoder.length == tokenize.length
    inputs = tokenized(tokenize, PROMPTS)
    assert inputs["caption_ids"].shape == (3, 24)
    assert inputs["caption_length"].tolist() == [9, 4, 9]


def test_the_recipe_of_the_vae_alone_needs_no_text_encoder(tmp_path):
    """It has no backbone, whose condition the states would be."""
    named = f"{tiny_text.CONFIG}:vae"
    words = ["--workdir", tmp_path / "run", "--config.run.steps=2", "--quiet"]
    run("train", "--config", named, "--config.text_encoder.weights=", *words)
    assert load_config(tmp_path / "run").text_encoder.family == "none"


def test_a_run_keeps_its_tokenizer(folder, prompts, tmp_path, capsys):
    """Samples need no other, and training refuses another one of the same size."""
    work = tmp_path / "work"
    shutil.copytree(folder / "lm", tmp_path / "lm")
    shutil.copytree(folder / "run", work)
    file = tmp_path / "lm" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [it for it in content["added_tokens"] if it["special"]]
    file.write_text(json.dumps(content))  # words become bytes; "" has the same ids
    stored = json.loads((work / "config.json").read_text())
    stored["text_encoder"]["weights"] = str(tmp_path / "lm")
    del stored["sha256"]  # the edit is meant
    (work / "config.json").write_text(json.dumps(stored))
    words = config(folder, **{"text_encoder.weights": tmp_path / "lm", "run.steps": 5})
    run("train", *words, "--workdir", work, "--quiet", status=2)
    assert f"{file} is another tokenizer than the run in {work} began" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "lm")
    for workdir in (folder / "run", work):
        words = ["--prompt", PROMPTS[0], "--output", tmp_path / f"{workdir.name}.png", "--quiet"]
        run("sample", "--workdir", workdir, *words)
    assert (picture(tmp_path / "run.png") == picture(tmp_path / "work.png")).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a disc", "--negative-prompt", "a ring"], "guidance scale of 1 it has no"),
        (["--prompt", "a \udcff"], "--prompt has a character that is none"),
        (["--prompt", "x" * 70_000], "--prompt has 70,000 bytes"),
        (["--prompt", "a disc", "--output", "."], ". is a folder"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_are_named_early(folder, capsys, words, message):
    run("sample", "--workdir", folder / "run", *words, "--quiet", status=2)
    assert message in capsys.readouterr().err


def test_a_prompt_that_is_cut_is_said(folder, capsys):
    tokenize = make_tokenize(load_config(folder / "run"))
    warn_of_cut_prompts(tokenize, ["a red disc", "a red disc " * 20])
    said = capsys.readouterr().err
    assert "1 of 2 prompts are longer than the text encoder's 24 tokens, such as 'a red" in said


def test_unreadable_captions_are_passed_over_where_that_is_wanted(tmp_path, capsys):
    data = tmp_path / "data"
    write_captioned(data / "train", ["a disc", "", "a ring", "two stars"])
    write_captioned(data / "heldout", ["", "a heart"])
    keys = {"data.source": "captions", "data.path": data, "text_encoder.weights": tmp_path / "lm"}
    words = [*config(tmp_path, **keys), "--config.data.name=", "--quiet"]
    run("pretrain-text-encoder", *words, status=2)
    assert "caption is empty" in capsys.readouterr().err
    assert not (tmp_path / "lm" / "tokenizer.json").exists()  # it comes with the weights
    run("pretrain-text-encoder", *words, "--config.data.on_bad_image=skip")
    run("pretrain-text-encoder", *words, status=2)
    assert "add --force" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "lm").iterdir()) == [
        "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_a_pipelines_images_are_those_of_generate(folder, prompts, tmp_path):
    words = ["--prompts", prompts, "--images-per-prompt", 2, "--negative-prompt", "a blue arrow"]
    generate(folder, tmp_path / "all", *words, "--seed", 5)
    expected = [picture(path) for path in sorted((tmp_path / "all").glob("*.png"))]
    pipeline = Pipeline.from_pretrained(folder / "run")
    given = dict(images_per_prompt=2, negative_prompt="a blue arrow", guidance_scale=3, seed=5)
    np.testing.assert_array_equal(pipeline(PROMPTS, **given), np.stack(expected))
    with pytest.raises(UserError, match="the prompt has 0 bytes"):
        pipeline(" ")
    with pytest.raises(UserError, match="the prompt is 3: give the prompt as text"):
        pipeline([3])
    with pytest.raises(UserError, match="at a guidance scale of 1 it has no effect"):
        pipeline("a red disc", negative_prompt="blue", guidance_scale=1.0)
