"""The `evaluate-described` command: its prompts, its table, its figures, and bad input."""

import json
import re

import numpy as np
import pytest
from test_prompt_scores import true_objects

from repae_jax.cli import main
from repae_jax.commands import evaluate_described
from repae_jax.data.described_prompts import render_prompt
from repae_jax.sampling.layouts import LAYOUTS, read_prompts

COUNT = 4  # prompts of a tag


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The prompts that the command writes, and renders of them in GenEval's layout."""
    root = tmp_path_factory.mktemp("described")
    file, folder = root / "prompts.jsonl", root / "images"
    words = ["evaluate-described", "--write-prompts", str(file), "--count", str(COUNT)]
    assert main(words) == 0
    prompts = read_prompts("geneval", file)
    for number, prompt in enumerate(prompts):
        images = [render_prompt(prompt.text, number + 1000, copy).image for copy in range(2)]
        LAYOUTS["geneval"].write(folder, prompt, np.stack(images))
    return file, folder


class Oracle:
    """A judge without fault, which recognizes renders by their pixels."""

    accuracy = 1.0

    def __init__(self, file):
        self.known = {}
        for number, prompt in enumerate(read_prompts("geneval", file)):
            for start in (0, 1000):  # renders of the ceiling, and those of the folder
                for copy in range(2):
                    made = render_prompt(prompt.text, number + start, copy)
                    self.known[made.image.tobytes()] = true_objects(made)

    def __call__(self, images):
        return [self.known.get(image.tobytes(), []) for image in images]


@pytest.fixture
def oracle(generated, monkeypatch):
    judge = Oracle(generated[0])
    monkeypatch.setattr(evaluate_described, "_make_judge", lambda path, progress: judge)


def judged(folder, tmp_path, capsys):
    output = tmp_path / "scores.json"
    words = ["evaluate-described", str(folder), "--judge", "j.safetensors", "--output", str(output)]
    assert main(words) == 0
    return capsys.readouterr(), json.loads(output.read_text())


def test_prompts_are_written_as_generate_reads_them(generated, tmp_path):
    file, _ = generated
    prompts = read_prompts("geneval", file)
    assert len(prompts) == 6 * COUNT
    again = tmp_path / "again.jsonl"
    words = ["evaluate-described", "--write-prompts", str(again), "--count", str(COUNT)]
    assert main(words) == 0
    assert again.read_bytes() == file.read_bytes()
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 2  # they are other prompts
    assert again.read_bytes() == file.read_bytes()
    words[2] = str(tmp_path / "others.jsonl")
    assert main([*words, "--seed", "1"]) == 0
    assert (tmp_path / "others.jsonl").read_bytes() != file.read_bytes()
    assert main([*words, "--judge", "judge.safetensors"]) == 2


def test_true_images_score_one(generated, oracle, tmp_path, capsys):
    said, figures = judged(generated[1], tmp_path, capsys)
    assert figures["mean"] == pytest.approx(
        {"all": 1, "seen": 1, "unseen": 1, "ceiling": 1, "floor": figures["mean"]["floor"]}
    )
    assert figures["mean"]["floor"] < 0.3
    assert figures["tags"]["counting"]["score"]["count"] == 2 * COUNT
    assert figures["tags"]["counting"]["unseen"] is None
    assert figures["tags"]["colors"]["unseen"]["count"] == COUNT
    assert "48 images of 24 prompts" in said.out
    row = next(line for line in said.out.splitlines() if line.startswith("position"))
    low = figures["tags"]["position"]["score"]["low"]
    assert re.split(r"\s+", row)[1:5] == ["1.000", f"{low:.3f}", "to", "1.000"]
    assert not said.err


def test_blank_images_score_zero(generated, oracle, tmp_path, capsys):
    folder = tmp_path / "blank"
    for prompt in read_prompts("geneval", generated[0]):
        LAYOUTS["geneval"].write(folder, prompt, np.full((2, 32, 32, 3), 128, np.uint8))
    _, figures = judged(folder, tmp_path, capsys)
    assert (figures["mean"]["all"], figures["mean"]["ceiling"]) == (0, 1)


def test_a_judge_that_errs_is_named(generated, tmp_path, capsys, monkeypatch):
    blind = type("Blind", (), {"accuracy": 0.0, "__call__": lambda self, x: [[] for _ in x]})()
    monkeypatch.setattr(evaluate_described, "_make_judge", lambda path, progress: blind)
    said, _ = judged(generated[1], tmp_path, capsys)
    assert said.err.count("warning: the ceiling of ") == 6
    assert "the ceiling of counting is 0.000, below 0.97: the judge limits its score" in said.err


@pytest.mark.slow
def test_the_judge_is_trained_once(generated, tmp_path, capsys, monkeypatch):
    from repae_jax.training import detector

    tiny = detector.DetectorRecipe(renders=40, steps=2, batch_size=16)
    monkeypatch.setattr(detector, "DetectorRecipe", lambda: tiny)
    path = tmp_path / "new" / "judge.safetensors"
    words = ["evaluate-described", str(generated[1]), "--judge", str(path), "--quiet"]
    assert main(words) == 0
    first = path.read_bytes()
    said = capsys.readouterr().out
    assert f"judge: {path}  (names all objects of " in said
    monkeypatch.setattr(detector, "train_judge", None)
    assert main(words) == 0
    assert path.read_bytes() == first
    assert capsys.readouterr().out == said.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no IMAGES: name a folder of images"),
        ("nowhere", "--judge is missing"),
        ("nowhere --judge j.safetensors", "nowhere is no folder"),
        (". --judge j.safetensors", "holds no prompts"),
        ("nowhere --write-prompts p.jsonl", "reads no images: leave nowhere out"),
        ("--write-prompts p.jsonl --count 0", "--count is 0: give at least 1"),
        ("--write-prompts p.jsonl --seed -1", "--seed is -1"),
        ("--write-prompts .", "is a folder"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate-described", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.jsonl", b"{", "00000/metadata.jsonl is damaged"),
        ("metadata.jsonl", b'{"tag": 1}', "metadata.jsonl: tag is 1"),
        ("samples/00000.png", b"x", "samples/00000.png: not a readable image"),
        ("metadata.jsonl", None, "metadata.jsonl: cannot be read"),
        ("samples/00000.png", None, "samples holds no images"),
    ],
)
def test_a_damaged_folder_is_named(file, content, message, oracle, generated, tmp_path, capsys):
    prompt = read_prompts("geneval", generated[0])[0]
    LAYOUTS["geneval"].write(tmp_path, prompt, np.zeros((1, 32, 32, 3), np.uint8))
    if content is None:
        (tmp_path / "00000" / file).unlink()
    else:
        (tmp_path / "00000" / file).write_bytes(content)
    assert main(["evaluate-described", str(tmp_path), "--judge", "j.safetensors"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_judge_of_another_kind_is_named(generated, tmp_path, capsys):
    words = ["evaluate-described", str(generated[1]), "--judge"]
    assert main([*words, str(tmp_path / "judge.pt")]) == 2
    assert "give a file .safetensors" in capsys.readouterr().err
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"no tensors")
    assert main([*words, str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
