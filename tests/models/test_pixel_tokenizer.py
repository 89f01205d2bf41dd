"""The tokenizer of pixels: latents are the images, and LatentNorm leaves them as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from repae_jax.config import backbone, tokenizer
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.models.tokenizers.base import parameter_shapes, variable_shapes
from repae_jax.models.tokenizers.codec import make_codec
from repae_jax.models.tokenizers.pixels import Pixels
from repae_jax.runs.build import build_models, fresh_state
from repae_jax.training.encode import encode
from repae_jax.training.latents import normalize


def on_pixels(recipe="repa"):
    config = tiny.get_config(recipe)
    config.tokenizer = tokenizer(family="pixels")
    config.backbone.patch_size = 8
    return config


def test_latents_are_the_images():
    pixels, images = Pixels(), np.random.default_rng(0).uniform(-1, 1, (2, 8, 6, 3))
    images = images.astype(np.float32)
    assert variable_shapes(pixels) == parameter_shapes(pixels) == {}
    point, again = pixels.apply({}, images, jnp.ones_like(images))
    np.testing.assert_array_equal(point.mean, images)
    np.testing.assert_array_equal(point.std, np.zeros_like(images))
    np.testing.assert_array_equal(point.kl(), np.zeros(2))
    np.testing.assert_array_equal(again, images)


def test_every_byte_comes_back():
    bytes_ = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    encode, decode = make_codec(Pixels())
    back, finite = decode({}, encode({}, bytes_))
    np.testing.assert_array_equal(back, bytes_)
    assert finite.all()


def test_latent_norm_is_the_identity():
    config = on_pixels()
    models = build_models(config)
    state = jax.eval_shape(lambda: fresh_state(config, models, jax.random.key(0)))
    assert state.params["tokenizer"] == {}
    norm = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    latents, _ = normalize(models, {"latent_norm": norm}, x, train=False)
    np.testing.assert_array_equal(latents, x)


@pytest.mark.parametrize("recipe", ["repae", "vae"])
def test_nothing_of_it_trains(recipe):
    message = "family is 'pixels', which has nothing to train, .* choose the recipe repa or vanilla"
    with pytest.raises(UserError, match=message):
        validate(on_pixels(recipe))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.weights", "x", "which has no weights, but config.tokenizer.weights is 'x'"),
        ("tokenizer.statistics", "x", "which has no statistics, but .*statistics is 'x'"),
        ("data.source", "latents", "whose latents are the images, but config.data.source"),
        ("objective.latent_norm", "batch", "not normalized, but .*latent_norm is 'batch': set"),
    ],
)
def test_what_it_lacks_is_said(key, value, message):
    config = on_pixels()
    section, _, name = key.partition(".")
    validate(config)
    config[section][name] = value
    with pytest.raises(UserError, match=message):
        validate(config)


def test_there_is_nothing_to_encode(tmp_path):
    with pytest.raises(UserError, match="'pixels', whose latents are the images: pack these with"):
        encode(on_pixels(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_jit_needs_its_least_time():
    config = on_pixels("vanilla")
    config.backbone = backbone(
        family="jit", patch_size=8, hidden_size=16, depth=2, num_heads=2, bottleneck=6,
        context_start=1, encoder_depth=1,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"least_time is 0.0, .*'jit' divides by max\(t, 0.05\)"):
        validate(config)
    config.objective.least_time = 0.05
    validate(config)
    config.backbone.least_time = 0.1
    with pytest.raises(UserError, match=r"set --config.objective.least_time=0.1"):
        validate(config)
