"""What the page computes, without Gradio and a browser: pictures, measures, errors."""

import importlib.metadata
import importlib.util
import types

import numpy as np
import pytest
from pictures import png, random_picture
from PIL import Image

from repae_jax.demo import actions
from repae_jax.demo.server import check_gradio, is_local, open_socket
from repae_jax.errors import UserError
from repae_jax.runs.pipeline import Trace

FIELDS = dict(
    what="3", count=2, steps=10, method="euler", scale=1.5, low=0, high=0.75, seed=4, negative=""
)


class Stub:
    """A pipeline whose images show the number of the image and of the step."""

    takes_prompts = False

    def __init__(self):
        self.config = types.SimpleNamespace(data=types.SimpleNamespace(resolution=32, crop="adm"))
        self.calls = []

    def trace(self, what, *, frames, **options):
        self.calls.append((what, options))
        count = len(what) * options.get("images_per_prompt", 1)
        steps = tuple(range(1, frames + 1))
        shown = np.zeros((frames, count, 32, 32, 3), np.uint8)
        shown[..., 0] = 10 * np.array(steps)[:, None, None, None]
        shown[..., 1] = np.arange(count)[:, None, None]
        latents = np.random.default_rng(0).normal(size=(frames, count, 8, 8, 4))
        return Trace(shown[-1], steps, shown, latents)

    def encode(self, images):
        return images[:, ::4, ::4].astype(np.float32)

    def decode(self, latents):
        return latents.repeat(4, 1).repeat(4, 2).astype(np.uint8)


def sample(pipeline=None, **changes):
    return actions.sample(pipeline or Stub(), **{**FIELDS, **changes})


def test_a_request_becomes_a_call():
    pipeline = Stub()
    made = sample(pipeline)
    options = dict(
        steps=10, method="euler", guidance_scale=1.5, guidance_interval=(0, 0.75), seed=4
    )
    assert pipeline.calls == [(["3", "3"], options)]
    assert made.message.startswith("2 images of class 3 in ")
    assert made.message.endswith("after the steps 1, 2, 3, 4, 5, 6, 7, 8")
    # images of 32 pixels are enlarged four times, with 4 pixels around each
    assert made.images.shape == (132 + 4, 2 * 132 + 4, 3)
    assert made.strip.shape == (2 * 132 + 4, 8 * 132 + 4, 3)
    row, column = 1, 6  # image 1 after step 7
    assert made.strip[4 + 132 * row, 4 + 132 * column].tolist() == [70, 1, 0]
    assert made.colors.shape == (132 + 4, 2 * 132 + 4, 3)


def test_no_class_and_prompts():
    pipeline = Stub()
    sample(pipeline, what="none", count=1)
    assert pipeline.calls[0][0] == [None]
    pipeline.takes_prompts = True
    made = sample(pipeline, what=" a red disc ", negative="blue")
    what, options = pipeline.calls[1]
    assert what == ["a red disc"]
    assert (options["images_per_prompt"], options["negative_prompt"]) == (2, "blue")
    assert made.message.startswith("2 images of 'a red disc' in ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "steps is 0: give a whole number from 1 to 1000"),
        (dict(steps=None), "steps is empty: give a number"),
        (dict(steps=2.5), "steps is 2.5: give a whole number"),
        (dict(steps=10**6), "steps is 1e+06: give a whole number from 1 to 1000"),
        (dict(count=65), "the number of images is 65: give a whole number from 1 to 64"),
        (dict(seed=-1), "the seed is -1: give a whole number from 0"),
        (dict(seed="many"), "the seed is 'many': give a number"),
        (dict(scale=None), "the guidance scale is empty"),
        (dict(low=float("nan")), "the lowest time is nan: give a number"),
        (dict(what=""), "the class is empty: choose one"),
        (dict(what=None), "the class is empty"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(UserError) as caught:
        sample(**changes)
    assert message in str(caught.value)


def test_an_empty_prompt_is_named():
    pipeline = Stub()
    pipeline.takes_prompts = True
    with pytest.raises(UserError, match="the prompt is empty: describe an image"):
        sample(pipeline, what="  ")


def test_a_picture_is_cropped_and_reconstructed(tmp_path):
    random_picture(48, 32, seed=3).save(tmp_path / "wide.png")
    made = actions.reconstruct(Stub(), tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as picture:
        own = np.asarray(picture)[:, 8:40]
    again = own[::4, ::4].repeat(4, 0).repeat(4, 1)
    error = np.square(own.astype(float) - again).mean()
    assert made.message.startswith(f"PSNR {10 * np.log10(255**2 / error):.2f} dB; ")
    assert "wide.png at 32 x 32, latents of 8 x 8 x 3" in made.message
    np.testing.assert_array_equal(made.pair[4:132:4, 4:132:4], own)
    np.testing.assert_array_equal(made.pair[4:132:4, 136:264:4], again)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(png(11_000, 11_000, 8, 2, b"\0"))
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(actions.MOST_BYTES + 1)
    for name, message in {
        "notes.png": "notes.png: not a readable image (it is none of JPEG, PNG",
        "huge.png": "11000 x 11000 pixels are more than the 100,000,000 that are read",
        "large.png": "large.png has 52,428,801 bytes: give a picture of at most 52,428,800",
    }.items():
        with pytest.raises(UserError) as caught:
            actions.reconstruct(Stub(), tmp_path / name)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="there is no picture: upload one"):
        actions.reconstruct(Stub(), None)


def test_ports_and_hosts():
    with open_socket("127.0.0.1", 0) as opened:
        opened.listen()
        port = opened.getsockname()[1]
        with pytest.raises(
            UserError, match=f"--port {port} cannot be opened .*choose another port"
        ):
            open_socket("127.0.0.1", port)
    with pytest.raises(UserError, match="--port is 65536: give 0"):
        open_socket("127.0.0.1", 65536)
    with pytest.raises(UserError, match="--host is 'no host', which is no address"):
        open_socket("no host", 0)
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0")] == [
        True, True, True, False,
    ]  # fmt: skip


def test_gradio_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gradio is not installed: pip install gradio"):
        check_gradio()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.49.1")
    with pytest.raises(UserError, match=r"gradio is 5.49.1: .* pip install -U gradio"):
        check_gradio()
