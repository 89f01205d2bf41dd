"""Micro-batches, rematerialisation and the scan over blocks change memory, not results."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxprs import convolution_batches
from parity import normal

from repae_jax.config import tokenizer
from repae_jax.models.encoders.vit import create_vit
from repae_jax.models.networks import with_stripes
from repae_jax.models.remat import POLICIES
from repae_jax.models.tokenizers.base import encode
from repae_jax.runs.build import (
    build_models,
    build_objective,
    build_optimizers,
    build_tokenizer,
    fresh_state,
    latent_shape,
)
from repae_jax.runs.state import tokenizer_variables
from repae_jax.training.noise import sample_draws
from repae_jax.training.program import Program
from repae_jax.training.step import make_train_step
from repae_jax.utils.images import to_float

pytestmark = pytest.mark.slow  # each compiles a whole step, some twice


def make(config):
    """(models, a state with weights that are not zero, a batch, draws) of a configuration."""
    models = build_models(config)
    state = jax.jit(lambda key: fresh_state(config, models, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    state = state.replace(params=nonzero(state.params))
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    return models, state, batch, sample_draws(jax.random.key(1), 8, latent_shape(config, models))


def nonzero(params):
    """Fresh weights with noise: many start at zero, behind which there is no gradient."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), params
    )


def run(config, *, stripes=1, **options):
    models, state, batch, draws = make(config)
    models = with_stripes(models, stripes)
    optimizers = build_optimizers(config)
    step = jax.jit(make_train_step(models, build_objective(config), optimizers, **options))
    return step(state, batch, draws)


def assert_close(actual, expected, tolerance=1e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(b).max()
        assert np.abs(a - b).max() <= tolerance * scale, jax.tree_util.keystr(path)


def without_batch_statistics():
    config = tiny.get_config()
    config.train = ("backbone", "tokenizer")
    config.objective.update(latent_norm="fixed", adversarial_weight=0.0)
    return config


def test_micro_batches_give_the_whole_batchs_step():
    config = without_batch_statistics()
    whole, expected = run(config)
    state, metrics = run(config, micro_batches=4)
    expected.pop("latent_std"), metrics.pop("latent_std")  # a statistic of the batch
    assert_close(metrics, expected)
    # Adam divides by the gradient's own size: compare what it divides, not what it makes of it
    assert_close(state.opt_state["backbone"], whole.opt_state["backbone"], 1e-4)
    assert_close(state.opt_state["tokenizer"], whole.opt_state["tokenizer"], 1e-4)


def test_stripes_give_the_same_step():
    config = tiny.get_config()
    config.objective.perceptual_weight = 1.0
    models, state, batch, _ = make(config)
    variables = tokenizer_variables(state.params, state.frozen)
    for network, height in ((with_stripes(models, 8), 8), (models, 1)):  # 8 stripes of 32 rows
        found = convolution_batches(
            functools.partial(encode, network.tokenizer, variables), to_float(batch["image"])
        )
        assert max(found) == len(batch["image"]) * height
    (whole, expected), (state, metrics) = run(config), run(config, stripes=8)
    assert_close(metrics, expected)
    assert_close(state.batch_stats, whole.batch_stats)
    # Adam divides by the gradient's own size: compare what it divides, not what it makes of it
    for name in config.train:
        assert_close(state.opt_state[name], whole.opt_state[name], 1e-4)


@pytest.mark.parametrize(
    ("platform", "batch", "parts", "key", "expected"),
    [
        ("tpu", 32, 4, 0, (4, 8)),
        ("tpu", 64, 4, 0, (8, 1)),
        ("tpu", 32, 4, 1, (4, 1)),
        ("tpu", 64, 4, 4, (8, 4)),
        ("cpu", 32, 4, 0, (4, 1)),
        ("cuda", 32, 4, 2, (4, 2)),
    ],
)
def test_the_program_chooses_the_stripes(platform, batch, parts, key, expected):
    config = tiny.get_config()
    config.batch_size = batch
    config.compute.update(micro_batches=parts, stripes=key)
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([[device, device]]), size=2)
    program = Program(config, models=None, mesh=mesh)
    assert (program.images_at_once, program.stripes) == expected


def test_the_scan_and_rematerialisation_of_the_sit_change_nothing():
    config = tiny.get_config("vanilla")
    config.backbone.update(depth=4, encoder_depth=2)
    latents, time, labels = normal(2, 8, 8, 2, seed=1), np.full(2, 0.3, np.float32), np.arange(2)

    def run(**compute):
        config.compute.update(compute)
        sit = build_models(config).backbone
        variables = jax.jit(sit.init)(jax.random.key(0), latents, time, {"label": labels})
        params = nonzero(variables.pop("params"))

        def loss(params, latents):
            output = sit.apply({"params": params, **variables}, latents, time, {"label": labels})
            return (output.prediction**2).sum() + (output.tokens**3).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, latents)

    expected = run()
    for scan in (False, True):
        for remat in POLICIES:
            assert_close(run(scan_blocks=scan, backbone_remat=remat), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("preset", ["dinov2-b-reg", "dinov2-g", "clip-l"])
def test_the_scan_of_a_teacher_changes_nothing(preset, dtype):
    sizes = dict(patch_size=4, native_grid=2, dim=8, depth=3, num_heads=2)
    images = normal(2, 8, 8, 3, seed=1)
    vit = create_vit(preset, **sizes, dtype=dtype)
    variables = nonzero(jax.jit(vit.init)(jax.random.key(0), images))
    expected = jax.jit(vit.apply)(variables, images)
    looped = vit.clone(scan=True)
    names = jax.eval_shape(looped.init, jax.random.key(0), images)
    assert jax.tree.structure(names) == jax.tree.structure(variables)
    assert "scan" in str(jax.make_jaxpr(looped.apply)(variables, images))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2  # the loop may round elsewhere
    for seen, wanted in zip(jax.jit(looped.apply)(variables, images), expected, strict=True):
        assert_close(seen, wanted, tolerance)


@pytest.mark.parametrize("family", ["kl", "qwenimage", "dcae"])
def test_rematerialisation_of_the_vae_changes_nothing(family):
    config = tiny.get_config("vae")
    if family == "qwenimage":
        config.tokenizer = tokenizer(
            family=family, channels=4, multipliers=(1, 1, 1), latent_channels=2, num_res_blocks=1,
            temporal_downsample=(False, True),
        )  # fmt: skip
    if family == "dcae":
        config.tokenizer = tokenizer(
            family=family, widths=(4, 8, 8), encoder_layers=(1, 1, 1), decoder_layers=(1, 1, 1),
            latent_channels=2, attention_levels=(2,), head_width=4,
        )  # fmt: skip
    images, noise = normal(2, 8, 8, 3, seed=1), normal(2, 2, 2, 2, seed=2)

    def run(policy):
        config.compute.tokenizer_remat = policy
        vae = build_tokenizer(config)
        params = jax.jit(vae.init)(jax.random.key(0), images, noise)["params"]

        def loss(params, images):
            posterior, again = vae.apply({"params": params}, images, noise)
            return (again**2).sum() + posterior.kl().sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, images)

    expected = run("none")
    for policy in ("products", "blocks"):
        assert_close(run(policy), expected, 1e-4)
