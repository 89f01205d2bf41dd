"""`Pipeline` on a work directory: the images of `generate`, programs used again, and errors."""

import re
import subprocess
import sys

import jax.monitoring
import numpy as np
import pytest
from painting import words

import repae_jax
from repae_jax.cli import main
from repae_jax.errors import UserError

pytestmark = pytest.mark.slow  # a run with random weights, and a program for each sampler

LABELS = [3, 1, 4, 1, 5]
OPTIONS = dict(guidance_scale=1.5, guidance_interval=(0.0, 0.75), seed=7)


@pytest.fixture(scope="module")
def pipeline(random_run):
    return repae_jax.Pipeline.from_pretrained(random_run)


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(LABELS, **OPTIONS)


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program that is compiled."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


def test_the_images_are_those_of_generate(images, random_run, tmp_path):
    given = dict(labels="3,1,4,1,5", count=5, seed=7, guidance_scale=1.5, guidance_high=0.75)
    assert main(words(random_run, tmp_path / "x.npz", **given)) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], images)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_a_call_of_the_same_shape_compiles_nothing(pipeline, images, compilations):
    again = pipeline(["5", "4", "3", "1", "2"], **{**OPTIONS, "seed": 8})
    assert again.shape == images.shape
    assert not compilations
    pipeline(LABELS, **OPTIONS, steps=2)
    assert compilations


def test_a_trace_ends_with_the_images_of_a_call(pipeline, images):
    trace = pipeline.trace(LABELS, frames=2, **OPTIONS)
    assert trace.steps == (2, 3)
    assert trace.frames.shape == (2, *images.shape)
    for found in (trace.images, trace.frames[-1]):
        assert np.abs(found.astype(int) - images).max() <= 1
    assert np.abs(trace.frames[0].astype(int) - images).max() > 8
    np.testing.assert_array_equal(pipeline.decode(trace.latents[-1]), trace.frames[-1])


def test_the_codec_is_the_runs(pipeline, images, random_run):
    vae = repae_jax.AutoencoderKL.from_pretrained(random_run)
    latents = pipeline.encode(images)
    np.testing.assert_allclose(latents, vae.encode(images).mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pipeline.vae.normalize(latents), vae.normalize(latents), rtol=1e-5)
    floats = np.clip(np.asarray(vae.decode(latents)), -1, 1)
    assert np.abs(pipeline.decode(latents) - (floats + 1) * 127.5).max() <= 1


def test_without_a_class_as_generate_with_labels_none(pipeline, random_run, tmp_path):
    assert main(words(random_run, tmp_path / "x.npz", labels="none", count=5)) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], pipeline([None] * 5))


def test_pictures_of_pil(pipeline, images):
    pictures = pipeline.to_pil(images)
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), images)
    grid = pipeline.grid(images, columns=3)  # enlarged to 64 pixels, 4 between them
    assert grid.size == (3 * 68 + 4, 2 * 68 + 4)
    np.testing.assert_array_equal(np.asarray(grid)[4:68:2, 4:68:2], images[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(what="cat"), "no class 'cat', and no names of classes"),
        (dict(what=[1, 10]), "the class is 10: the model's classes are 0 to 9"),
        (dict(what=[]), "the list of classes is empty"),
        (dict(what=1, steps=0), "steps is 0: euler takes a whole number from 1"),
        (dict(what=1, method="rk45"), "method is 'rk45': choose one of euler, heun"),
        (dict(what=1, guidance_scale="high"), "guidance_scale is 'high': give a number"),
        (dict(what=1, guidance_scale=-1), "guidance_scale is -1: give a finite number from 0"),
        (dict(what=1, guidance_interval=(0.5, 0.2)), "the guidance interval is [0.5, 0.2]"),
        (dict(what=1, guidance_interval=0.5), "guidance_interval is 0.5: give two times"),
        (dict(what=1, seed=2**32), "seed is 4294967296: give a whole number"),
        (dict(what=1, seed=0.5), "seed is 0.5: give a whole number"),
        (dict(what=1, batch_size=0), "batch_size"),
        (dict(what=1, shfit=2.0), "no option shfit: did you mean shift?"),
        (dict(what=1, negative_prompt="blue"), "takes classes: leave it out"),
        (dict(what=1, images_per_prompt=2), "takes classes: repeat them in the list"),
        (dict(what=[None], guidance_scale=2.0), "there is no class to guide towards"),
    ],
)
def test_bad_arguments_are_named(pipeline, call, message):
    with pytest.raises(UserError) as caught:
        pipeline(**call)
    assert message in str(caught.value)


def test_what_holds_no_generator_is_named(random_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(random_run), "vae", "--quiet"]) == 0
    for name, message in {
        "vae": "(VAE as diffusers writes it) generates no images",
        "absent": "absent: no such file or folder",
        random_run: "is a work directory with its own configuration",
    }.items():
        overrides = {"dtype": "bfloat16"} if name == random_run else {}
        with pytest.raises(UserError, match=re.escape(message)):
            repae_jax.Pipeline.from_pretrained(name, overrides=overrides)


def test_the_package_is_imported_quickly():
    code = "import sys, repae_jax; print(*sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
