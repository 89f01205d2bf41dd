"""`evaluate` of images of prompts: the CLIP score, and FID with clean-fid's resizing."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from clip_folders import write_clip
from PIL import Image

from repae_jax.cli import main
from repae_jax.evaluation.clip_score import CLIPScorer
from repae_jax.evaluation.prompted_images import find_prompted
from repae_jax.sampling.layouts import LAYOUTS, Prompt

RNG = np.random.default_rng(0)
TEXTS = ["a", "b c", "ab", "red", "a disc", "x y z"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder as COCO's images are written."""
    folder = tmp_path_factory.mktemp("coco")
    prompts = [Prompt(text, f"{number:06d}") for number, text in enumerate(TEXTS)]
    for prompt in prompts:
        LAYOUTS["coco"].write(folder, prompt, RNG.integers(0, 256, (1, 32, 32, 3), np.uint8))
    for path, content in LAYOUTS["coco"].listing(prompts).items():
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder of pictures at their own sizes."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(7):
        pixels = RNG.integers(0, 200, (20 + number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def light(monkeypatch):
    """Replaces Inception by a few means; the list of the images' shapes and types that it saw."""
    seen = []

    def make_features(variables, *, mesh, resized=False):
        def features(images):
            seen.append((images.shape[1:], str(images.dtype), resized))
            means = jnp.asarray(images, jnp.float32)[:, :, :18].mean(1).reshape(len(images), -1)
            return {"pool": means[:, :10], "spatial": means[:, 10:20], "logits": means[:, :5] / 99}

        return features

    monkeypatch.setattr("repae_jax.evaluation.inception_features.make_features", make_features)
    monkeypatch.setattr("repae_jax.interop.inception.read_inception", lambda path: {})
    return seen


def evaluate(*words):
    return main(["evaluate", *map(str, words), "--batch-size", "4", "--quiet"])


def test_clip_score_needs_no_reference(images, clip, tmp_path, capsys):
    words = [images, "--clip", clip, "--count", 5, "--output", tmp_path / "x.json"]
    assert evaluate(*words) == 0
    expected = CLIPScorer(clip)(find_prompted(images).first(5), batch_size=4)
    assert expected > 0
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "samples": str(images), "clip": str(clip), "clip_images": 5, "clip_score": expected
    }  # fmt: skip
    assert f"CLIP score{expected:>16.4f}" in capsys.readouterr().out


def test_clean_resizing_takes_pictures_at_their_own_sizes(
    light, images, real, clip, tmp_path, capsys
):
    statistics = tmp_path / "statistics.npz"
    words = [images, "--resizing", "clean", "--output", tmp_path / "x.json"]
    more = ["--clip", clip, "--save-reference", statistics]
    assert evaluate(*words, "--reference", real, *more) == 0
    assert set(light) == {((299, 299, 3), "float32", True)}
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) >= {"fid", "sfid", "clip_score"}
    assert (figures["resizing"], figures["count"]) == ("clean", 6)
    assert "6 images against" in (printed := capsys.readouterr().out)
    assert "resized as by clean-fid" in printed
    assert evaluate(*words, "--reference", statistics) == 0  # which records the resizing
    again = json.loads((tmp_path / "x.json").read_text())
    assert again["fid"] == pytest.approx(figures["fid"], rel=1e-9)
    assert "clip_score" not in again
    assert evaluate(images, "--reference", statistics) == 2
    assert "resized by 'clean', but the samples are by 'adm'" in capsys.readouterr().err


def test_the_default_resizes_in_the_network(light, images, real, tmp_path, capsys):
    statistics = tmp_path / "statistics.npz"
    words = ["--resolution", 20, "--save-reference", statistics]
    assert evaluate(images, "--reference", real, *words) == 0
    assert set(light) == {((20, 20, 3), "uint8", False)}
    assert "clean" not in capsys.readouterr().out
    assert evaluate(images, "--reference", statistics, "--resizing", "clean") == 2
    assert "resized by 'adm', but the samples are by 'clean'" in capsys.readouterr().err


@pytest.mark.slow  # generates twice
def test_a_run_is_resized_as_its_written_images(light, random_run, real, tmp_path):
    made, words = tmp_path / "made.npz", ["--count", 5, "--seed", 3]
    sampled = ["generate", "--workdir", random_run, "--output", made, *words, "--quiet"]
    assert main([*map(str, sampled), "--batch-size", "4"]) == 0
    found = []
    for samples in ([random_run, *words], [made]):
        more = ["--reference", real, "--resizing", "clean", "--output", tmp_path / "x.json"]
        assert evaluate(*samples, *more) == 0
        found.append(json.loads((tmp_path / "x.json").read_text())["fid"])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert set(light) == {((299, 299, 3), "float32", True)}


def test_options_that_do_not_fit_are_refused(images, real, clip, random_run, tmp_path, capsys):
    for words, message in (
        ([images], "give --reference, or --clip for images of prompts"),
        ([images, "--reference", real, "--resizing", "pil"], "--resizing is 'pil': use adm or cle"),
        ([real, "--clip", clip], "holds no prompts: name a folder of images with prompts.jsonl"),
        ([random_run, "--clip", clip], "--clip needs prompts, but"),
        ([images, "--clip", clip, "--count", 9], "holds 6 images, 9 are requested"),
        ([images, "--clip", tmp_path / "none"], "none', which does not exist"),
        (
            [images, "--clip", clip, "--save-reference", tmp_path / "x.npz"],
            "x.npz needs --reference",
        ),
    ):
        assert evaluate(*words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
