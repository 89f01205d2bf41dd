"""Runs on RAE: the decoder's training from an encoder, and a backbone on its latents."""

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
import torch_ddt
from config_files import write_config
from original_ddt import labelled
from random_steps import leaves, steps
from tiny_weights import write_teacher

from repae_jax.cli import main
from repae_jax.config import apply_recipe, backbone, tokenizer
from repae_jax.config.validate import validate
from repae_jax.data.latents import open_latents, statistics_of
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.interop.files import write_safetensors
from repae_jax.interop.vae_files import StoredVAE, read_vae, write_diffusers
from repae_jax.interop.vit import export_vit
from repae_jax.models.tokenizers.base import encode, variable_shapes
from repae_jax.runs.build import build_models
from repae_jax.runs.initial_state import init_state, load_weights
from repae_jax.runs.open_run import open_run, run_vae
from repae_jax.runs.statistics import latent_moments
from repae_jax.runs.weights import read_vae as read_configured
from repae_jax.training.default_hooks import default_hooks
from repae_jax.training.encode import encode as write_cache
from repae_jax.training.loop import train
from repae_jax.training.start import frozen_encoder_note
from repae_jax.utils.images import to_float

GRID, WIDTH = 8, 64


def make_config(recipe, weights):
    config = tiny.get_config()
    config.tokenizer = tokenizer(
        family="rae", encoder="dinov2", latent_channels=WIDTH, encoder_depth=1, encoder_patch=14,
        decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_hidden=24, factor=4,
        position_step=2.0, weights=str(weights),
    )  # fmt: skip
    config.objective.latent_noise = 0.8
    config.teachers.small.weights = str(weights.parent / "teacher.safetensors")
    config = apply_recipe(config, recipe)
    validate(config)
    return config


def random_variables(model):
    rng = np.random.default_rng(0)

    def one(path, shape):
        values = rng.normal(scale=0.2, size=shape.shape).astype(np.float32)
        return values + 1 if path[-1].key == "scale" else values

    return jax.tree_util.tree_map_with_path(one, variable_shapes(model))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole RAE with statistics (`rae`), its encoder alone, and a random teacher."""
    path = tmp_path_factory.mktemp("rae")
    model = build_models(make_config("vae", path / "rae")).tokenizer
    variables = random_variables(model)
    params = variables.pop("params")
    shape = (GRID, GRID, WIDTH)
    statistics = {"mean": parity.normal(*shape, seed=1)}
    statistics["var"] = 0.5 + np.abs(parity.normal(*shape, seed=2))
    write_diffusers(path / "rae", StoredVAE(model, params, {}, statistics, constants=variables))
    encoder = export_vit(variables["constants"]["encoder"], model.vit, "transformers")
    write_safetensors(path / "encoder.safetensors", encoder)
    write_teacher(path)
    return path


@pytest.mark.slow  # compiles a step
def test_a_backbone_learns_on_its_latents(folder):
    """Normalized by the file's statistics, which stay, as encoder and decoder do."""
    config = make_config("repa", folder / "rae")
    states, metrics = steps(config, 2)
    first, last = states[::2]
    for values in metrics:
        assert all(np.isfinite(value) for value in values.values())
        assert values["skipped"] == 0
    stored = read_vae(folder / "rae")
    for name, array in stored.statistics.items():
        for state in (first, last):
            np.testing.assert_array_equal(state.batch_stats["latent_norm"][name], array)
            np.testing.assert_allclose(state.ema["latent_norm"][name], array, rtol=1e-6)
    for state in (first, last):
        for ours, theirs in (
            (state.params["tokenizer"], stored.params),
            (state.frozen["tokenizer"], stored.constants),
        ):
            theirs = leaves(theirs)
            for name, array in leaves(ours).items():
                np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    before, after = leaves(first.params["backbone"]), leaves(last.params["backbone"])
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_raes_backbone_becomes_a_run_on_its_latents(folder, tmp_path):
    """RAE's DiT^DH, which denoises latents normalized by position, as a file of its training."""
    sizes = dict(hidden_size=[32, 48], depth=[2, 1], num_heads=[2, 3], num_classes=10)
    shape = dict(input_size=GRID, patch_size=1, in_channels=WIDTH)
    reference = parity.randomise(torch_ddt.MODELS["ditdh"](**shape, **sizes), seed=3)
    torch.save({"ema": reference.state_dict()}, tmp_path / "stage2.pt")
    config = make_config("vanilla", folder / "rae")
    config.backbone = backbone(
        family="ditdh", patch_size=1, hidden_size=32, depth=2, num_heads=2, encoder_depth=1,
        head_size=48, head_depth=1, head_heads=3,
    )  # fmt: skip
    write_config(tmp_path / "dh.py", config)
    words = ["--config", str(tmp_path / "dh.py"), "--quiet"]
    assert main(["convert", str(tmp_path / "stage2.pt"), str(tmp_path / "run"), *words]) == 0
    run, stored = open_run(tmp_path / "run"), read_vae(folder / "rae")
    x, t = parity.normal(2, GRID, GRID, WIDTH, seed=5), np.array([0.3, 1.0], np.float32)
    labels = np.array([1, 10])
    with torch.no_grad():
        expected = labelled("ditdh", reference, parity.to_nchw(x), torch.tensor(t), labels)
    params = {"params": run.state.ema["params"]}
    ours = run.models.backbone.apply(params, x, t, {"label": labels})
    parity.assert_close(ours.prediction, parity.to_nhwc(expected), "velocity")
    for name, array in stored.statistics.items():
        np.testing.assert_array_equal(run.state.ema["latent_norm"][name], array)
    for name, array in leaves(stored.constants).items():
        np.testing.assert_array_equal(leaves(run.state.frozen["tokenizer"])[name], array)


@pytest.mark.slow  # trains
def test_a_decoder_learns_from_scratch_on_an_encoder(folder, tmp_path):
    """The encoder's file gives the constants, the seed the decoder, and only this learns."""
    config = make_config("vae", folder / "encoder.safetensors")
    config.train, config.objective.adversarial_weight = ("tokenizer",), 0.0
    config.tokenizer_ema_decay = 0.5
    config.run.update(steps=2)
    models = build_models(config)
    first = init_state(config, models)
    train(config, tmp_path / "run", make_hooks=default_hooks)
    vae = run_vae(tmp_path / "run")
    expected = read_vae(folder / "rae")
    for tree in (first.frozen["tokenizer"], vae.constants):
        theirs = leaves(expected.constants)
        for name, array in leaves(tree).items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    before, after = leaves(first.params["tokenizer"]), leaves(vae.params)
    assert [name for name in before if np.array_equal(before[name], after[name])] == []
    # the run is the tokenizer of another one, and a folder for diffusers
    again = make_config("repa", tmp_path / "run")
    found, statistics = read_configured(again, models.tokenizer)
    assert statistics is None
    assert leaves(found).keys() == leaves(vae.variables).keys()
    write_diffusers(tmp_path / "out", vae)
    assert read_vae(tmp_path / "out").module == vae.module.clone(dtype=np.float32)


def test_a_joint_run_is_told_that_the_latents_stay(folder):
    for recipe, told in {"repae": True, "repa": False, "vae": False}.items():
        config = make_config(recipe, folder / "rae")
        note = frozen_encoder_note(config, build_models(config))
        assert ("alignment cannot tune the latents" in note) == told


def test_an_encoder_alone_does_not_do_for_a_frozen_tokenizer(folder):
    config = make_config("repa", folder / "encoder.safetensors")
    with pytest.raises(UserError, match="holds the encoder of a RAE alone, whose decoder is"):
        load_weights(config, build_models(config))


def test_statistics_of_another_resolution_are_named(folder):
    config = make_config("vanilla", folder / "rae")
    config.data.resolution = 16
    config.tokenizer.position_step = 4.0
    with pytest.raises(UserError, match="are of 8 x 8 positions, but 4 x 4 are needed"):
        init_state(config, build_models(config))


def test_statistics_are_measured_and_cached_by_position(folder, tmp_path):
    config = make_config("repa", folder / "rae")
    models = build_models(config)
    variables, _ = read_configured(config, models.tokenizer)
    source = open_source(config.data, "heldout")
    count = min(len(source), 32) // 8 * 8
    images = np.stack([source[i]["image"] for i in range(count)])
    of_images = jax.jit(lambda v, x: encode(models.tokenizer, v, to_float(x)).mean)
    z = np.asarray(of_images(variables, images), np.float64)
    found = latent_moments(models.tokenizer, variables, source, 8, count, progress=False)
    assert found["mean"].shape == (GRID, GRID, WIDTH)
    np.testing.assert_allclose(found["mean"], z.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["var"], z.var(0), rtol=2e-2, atol=1e-4)

    write_cache(config, tmp_path / "cache", split="heldout", progress=False)
    cache = open_latents(tmp_path / "cache")
    z = np.stack([cache[i]["latent_mean"] for i in range(len(cache))]).astype(np.float64)
    statistics = statistics_of(cache)
    np.testing.assert_allclose(statistics["mean"], z.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], z.var(0), rtol=1e-4, atol=1e-6)
