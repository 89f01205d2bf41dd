"""Latents and pixels that are not finite: an error that says where they first appeared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from velocities import CLASSES, NULL_LABEL, SHAPE, velocity

from repae_jax.cli import main
from repae_jax.runs.open_run import sampling_weights
from repae_jax.runs.pretrained import PretrainedVAE
from repae_jax.sampling.generate import generate_all, make_generate
from repae_jax.sampling.integrate import sample_watched
from repae_jax.sampling.sampler import METHODS, Sampler
from repae_jax.sampling.steps import time_grid
from repae_jax.utils.finite import NotFinite

STEPS = 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e38])
def test_the_step_that_broke_an_image_is_told(method, bad):
    """From t = 0.5 on the velocity of class 2 is no number, or too large to be added up."""
    sampler = Sampler(method, STEPS, "linear", guidance_scale=2.0, guidance_low=0.7)
    labels = jnp.arange(4) % CLASSES
    noise = jax.random.normal(jax.random.key(0), (4, *SHAPE))

    def broken(x, t, labels):
        spoilt = (t <= 0.5) & (labels == 2)
        return jnp.where(spoilt[:, None, None, None], 20 * bad, velocity(x, t, labels))

    def run(noise, velocity):
        return sample_watched(
            sampler, velocity, noise, labels, null=NULL_LABEL,
            step_noise=(lambda step: jnp.ones_like(noise)) if sampler.stochastic else None,
        )  # fmt: skip

    latents, faults = jax.jit(run, static_argnums=1)(noise, broken)
    times = time_grid(sampler)
    # A step looks at the time that it starts from; Heun's at the one that it arrives at as well,
    # but for the last.
    looked = np.minimum(times[:-1], np.append(times[1:-1], 1)) if method == "heun" else times[:-1]
    first = 1 + int(np.argmax(looked <= 0.5))
    assert 1 < first < STEPS
    np.testing.assert_array_equal(faults, [0, 0, first, 0])
    np.testing.assert_array_equal(np.isfinite(latents).all((1, 2, 3)), [True, True, False, True])
    assert not jax.jit(run, static_argnums=1)(noise, velocity)[1].any()


def replaced(tree, value):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)


@pytest.fixture(scope="module")
def generate(opened):
    """generate(weights' changes) of six images: one compiled program."""
    models, weights = opened.models, sampling_weights(opened.state)
    made = make_generate(models, Sampler("euler", 3, "linear"))

    def generate(**changes):
        labels = np.array([0, 1, 2, 3, 4, 5], np.int32)
        key = jax.random.key(0)
        given = {**weights, **changes}
        return generate_all(made, given, key, {"label": labels}, batch_size=4, progress=False)

    return generate


def test_images_say_which_and_why(opened, generate):
    generate()
    weights = sampling_weights(opened.state)
    with pytest.raises(NotFinite, match="image 0 .class 0.: its latents .* from sampling step 1 "):
        generate(backbone=replaced(weights["backbone"], np.nan))
    with pytest.raises(NotFinite, match="image 0 .*: its pixels are NaN or infinite, though its"):
        generate(tokenizer=replaced(weights["tokenizer"], np.nan))


def test_only_images_that_are_asked_for_count(opened):
    """A batch is filled up with images that nobody sees."""
    models, weights = opened.models, sampling_weights(opened.state)
    made = make_generate(models, Sampler("euler", 3, "linear"))

    def spoilt(*inputs):  # the third of the batch
        batch = made(*inputs)
        return batch._replace(faults=batch.faults.at[2].set(2))

    def run(count):
        labels, batch = np.arange(count, dtype=np.int32), {"batch_size": 4, "progress": False}
        return generate_all(spoilt, weights, jax.random.key(0), {"label": labels}, **batch)

    assert len(run(2)) == 2
    with pytest.raises(NotFinite, match="image 2 .* from sampling step 2 on"):
        run(3)


@pytest.mark.parametrize("command", ["sample", "generate"])
def test_a_guidance_without_measure_is_no_black_picture(command, run, tmp_path, capsys):
    words = [command, "--workdir", str(run), "--quiet", "--steps", "3", "--labels", "3"]
    words += ["--count", "1"] if command == "generate" else []
    for scale, message in {
        "1e39": "image 0 (class 3): its latents are NaN or infinite from sampling step 1 on",
        "1e30": "image 0 (class 3): its pixels are NaN or infinite, though its latents are not",
        "inf": "guidance_scale is inf: give a finite number",
        "nan": "guidance_scale is nan: give a finite number",
    }.items():
        output = tmp_path / (f"{scale}.png" if command == "sample" else f"{scale}.npz")
        assert main([*words, "--output", str(output), "--guidance-scale", scale]) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
        assert not output.exists()


def test_no_weights_leave_that_nobody_could_read(opened, tmp_path):
    params = replaced(opened.state.params["tokenizer"], np.inf)
    with pytest.raises(ValueError, match="tensor .* would hold NaN or infinite values"):
        PretrainedVAE(opened.models.tokenizer, params).save_pretrained(tmp_path / "vae")
    assert not list(tmp_path.iterdir())
