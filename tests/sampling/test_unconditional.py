"""Images of no class: by the null class, by a guidance scale of 0, and what they are called."""

import itertools
import shutil

import jax
import numpy as np
import pytest
from painting import words
from velocities import CLASSES, NULL_LABEL, SHAPE, field, velocity

from repae_jax.cli import main
from repae_jax.config.storage import from_json, to_json
from repae_jax.runs.open_run import sampling_weights
from repae_jax.sampling.class_labels import NO_CLASS
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.sampling.integrate import sample
from repae_jax.sampling.sampler import Sampler
from repae_jax.sampling.steps import time_grid


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_the_guided_velocity_follows_the_formula(scale, interval):
    """uncond + s (cond - uncond) inside the interval, cond outside, in numpy and float64."""
    sampler = Sampler("euler", 10, "linear", scale, *interval)
    labels = np.arange(4) % CLASSES
    noise = np.random.default_rng(0).normal(size=(4, *SHAPE))
    x, times = noise, time_grid(sampler)
    for start, stop in itertools.pairwise(times):
        t = np.full(4, start)
        cond = field(x, t, labels, np)
        uncond = field(x, t, np.full(4, NULL_LABEL), np)
        inside = interval[0] <= start <= interval[1]
        x = x + (stop - start) * (uncond + scale * (cond - uncond) if inside else cond)
    ours = jax.jit(lambda n: sample(sampler, velocity, n, labels, null=NULL_LABEL))(noise)
    np.testing.assert_allclose(ours, x, rtol=2e-4, atol=2e-5)


def test_no_class_is_the_null_class(opened):
    models, weights = opened.models, sampling_weights(opened.state)
    sampler, key = Sampler("euler", 3, "linear"), jax.random.key(1)
    generate = make_generate(models, sampler)
    none, null = (
        np.full(4, label, np.int32) for label in (NO_CLASS, models.backbone.conditioner.null_label)
    )
    images = [
        generate_all(generate, weights, key, {"label": labels}, batch_size=4, progress=False)
        for labels in (none, null, np.zeros(4, np.int32))
    ]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).mean() > 0.1
    # and what a guidance scale of 0 gives, whatever the class
    scale0 = make_generate(models, Sampler("euler", 3, "linear", 0.0))
    inputs = {"label": np.arange(4, dtype=np.int32)}
    guided = generate_all(scale0, weights, key, inputs, batch_size=4, progress=False)
    assert np.abs(guided.astype(int) - images[0]).max() <= 1


def test_the_file_says_that_there_is_no_class(run, painted, tmp_path):
    output = tmp_path / "x.npz"
    assert main(words(run, output, count=5, labels="none")) == 0
    with np.load(output) as arrays:
        np.testing.assert_array_equal(arrays["arr_1"], [-1] * 5)
    assert '"labels": "none"' in (tmp_path / "x.json").read_text()
    assert '"guidance_scale": 1.0' in (tmp_path / "x.json").read_text()


def test_what_contradicts_it_is_refused(run, painted, tmp_path, capsys):
    assert main(words(run, tmp_path / "x.npz", labels="none", guidance_scale=2)) == 2
    message = "--guidance-scale is 2.0, but --labels none leaves no class to guide towards"
    assert message in capsys.readouterr().err
    without = tmp_path / "run"
    shutil.copytree(run, without)
    config = from_json((run / "config.json").read_text(), source="")
    config.condition.drop = 0.0
    (without / "config.json").write_text(to_json(config))
    for option, message in {
        "labels=none": "--labels none asks for the null class, but this run was trained with",
        "guidance_scale=0": "the guidance scale is 0.0, but a backbone trained with config.",
        "guidance_scale=2": "the guidance scale is 2.0, but a backbone trained with config.",
    }.items():
        name, value = option.split("=")
        assert main(words(without, tmp_path / "x.npz", **{name: value})) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
