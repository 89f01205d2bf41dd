"""Cached latents: what `encode` writes, and that training on it is training on the images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import tiny
from PIL import Image
from runs import TINY
from safetensors.numpy import load_file, save_file
from tiny_weights import write_weights

from repae_jax.cli import main
from repae_jax.config.storage import to_json
from repae_jax.data.latents import open_latents
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import (
    build_models,
    build_objective,
    build_optimizers,
    latent_shape,
)
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.fingerprint import tokenizer_sha256, weights_sha256
from repae_jax.runs.initial_state import init_state
from repae_jax.runs.weights import read_vae
from repae_jax.training.encode import encode
from repae_jax.training.noise import sample_draws
from repae_jax.training.program import Program
from repae_jax.training.step import make_train_step
from repae_jax.utils.images import to_float


def make_config(folder, source="digits"):
    """The tiny :repa configuration on a frozen VAE from a file."""
    config = tiny.get_config("repa")
    config.teachers.small.weights = str(folder / "teacher.safetensors")
    config.tokenizer.weights = str(folder / "vae")
    if source == "latents":
        config.data.update(source="latents", path=str(folder / "cache"))
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a random VAE, a random teacher, and a small cache of latents and images."""
    folder = tmp_path_factory.mktemp("encode")
    write_weights(folder)
    encode(make_config(folder), folder / "cache", per_shard=400, images=True, mirrored=True,
           progress=False)  # fmt: skip
    return folder


def posterior_of(config, images):
    models = build_models(config)
    variables, _ = read_vae(config, models.tokenizer)
    return models.tokenizer.apply(variables, to_float(images), method="encode")


def test_a_cache_holds_the_posterior_of_every_image(folder):
    config = make_config(folder)
    source = open_source(config.data, "train")
    cache = open_latents(folder / "cache")
    assert len(cache) == len(source)
    assert cache.num_classes == 10
    indexes = [0, 1, 399, 400, len(source) - 1]
    images = np.stack([source[i]["image"] for i in indexes])
    expected = posterior_of(config, images)
    for row, index in enumerate(indexes):
        element = cache[index]
        assert set(element) == {"latent_mean", "latent_std", "image", "label"}
        parity.assert_close(element["latent_mean"], expected.mean[row], "mean", 1e-5)
        parity.assert_close(element["latent_std"], expected.std[row], "std", 1e-5)
        np.testing.assert_array_equal(element["image"], images[row])
        assert element["label"] == source[index]["label"]


def test_mirrored_images_are_encoded_too(folder):
    config = make_config(folder)
    source = open_source(config.data, "train")
    cache = open_latents(folder / "cache", mirrored=True)
    image = source[7]["image"][:, ::-1]
    expected = posterior_of(config, image[None])
    mirrored = cache[7]["mirrored"]
    parity.assert_close(mirrored["latent_mean"], expected.mean[0], "mean", 1e-5)
    np.testing.assert_array_equal(mirrored["image"], image)


def test_statistics_are_those_of_all_latents(folder):
    cache = open_latents(folder / "cache")
    means, seconds = [], []
    for index in range(len(cache)):
        element = open_element(folder, index)
        for part in (element, element["mirrored"]):
            mean, std = (part[f"latent_{kind}"].astype(np.float64) for kind in ("mean", "std"))
            means.append(mean.mean((0, 1)))
            seconds.append((mean**2 + std**2).mean((0, 1)))
    mean = np.mean(means, 0)
    statistics = cache.manifest["statistics"]
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics["var"], np.mean(seconds, 0) - mean**2, rtol=1e-9)


def open_element(folder, index, cache={}):  # noqa: B006  (one cache for all calls)
    if folder not in cache:
        cache[folder] = open_latents(folder / "cache", mirrored=True)
    return cache[folder][index]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["images", "tokens"])
def test_training_on_the_cache_is_training_on_the_images(kept, folder, tmp_path):
    config = make_config(folder)
    path = folder / "cache"
    if kept == "tokens":
        path = tmp_path / "cache"
        encode(config, path, per_shard=1000, teachers=True, progress=False)
    source, cache = open_source(config.data, "train"), open_latents(path)
    models = build_models(config)
    state = init_state(config, models)
    step = jax.jit(make_train_step(models, build_objective(config), build_optimizers(config)))
    live_state = cached_state = state
    for number in range(3):
        indexes = range(number * config.batch_size, (number + 1) * config.batch_size)
        live, cached = (
            jax.tree.map(lambda *leaves: np.stack(leaves), *[images[i] for i in indexes])
            for images in (source, cache)
        )
        if kept == "tokens":
            assert "image" not in cached
        draws = sample_draws(
            jax.random.key(number), config.batch_size, latent_shape(config, models)
        )
        live_state, expected = step(live_state, live, draws)
        cached_state, actual = step(cached_state, cached, draws)
        assert set(actual) == set(expected)
        assert not actual.pop("skipped")
        assert not expected.pop("skipped")
        for name, value in expected.items():
            parity.assert_close(actual[name], value, name)
    # and what is compiled ahead takes such batches
    config.data.update(source="latents", path=str(path))
    compiled = Program(config, models, make_mesh(1, 1)).arguments()[1]
    assert jax.tree.map(shape_of, compiled) == jax.tree.map(shape_of, cached)


def shape_of(array):
    return array.shape, array.dtype


@pytest.mark.slow
def test_the_command_trains_on_the_cache(folder, tmp_path):
    workdir = tmp_path / "run"
    words = ["--config", f"{TINY}:repa", "--config.data.source=latents"]
    words += [f"--config.data.path={folder / 'cache'}", "--config.data.flip=True"]
    words += [f"--config.tokenizer.weights={folder / 'vae'}"]
    words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
    assert main(["train", *words, "--workdir", str(workdir), "--quiet"]) == 0
    # the statistics that LatentNorm keeps to: those that came with the VAE
    config = json.loads((folder / "vae" / "config.json").read_text())
    var = restore_latest(workdir)["batch_stats"]["latent_norm"]["var"]
    np.testing.assert_allclose(var, config["scaling_factor"] ** -2, rtol=1e-6)


def test_tokens_are_the_teachers(folder, tmp_path):
    config = make_config(folder)
    encode(config, tmp_path / "cache", teachers=True, dtype="float16", progress=False)
    source, cache = open_source(config.data, "train"), open_latents(tmp_path / "cache")
    models = build_models(config)
    teacher = models.teachers["small"]
    state = init_state(config, models)
    image = source[5]["image"][None]
    expected = teacher.apply(state.frozen["teachers"]["small"], teacher.prepare(jnp.asarray(image)))
    (tokens,) = cache[5]["teacher_tokens"]
    assert tokens.dtype == np.float32
    parity.assert_close(tokens, expected.patch_tokens[0], "tokens", 1e-3)
    assert cache.manifest["made"]["dtype"] == "float16"


def test_a_cache_keeps_the_class_token_that_the_backbone_denoises(folder, tmp_path, capsys):
    """Behind the patches' tokens; a backbone without one trains on them too, but not without."""
    plain, reg = make_config(folder), make_config(folder)
    reg.backbone.class_token_dim = 8
    for name, config in (("plain", plain), ("reg", reg)):
        encode(config, tmp_path / name, teachers=True, progress=False)
    without, both = (
        open_latents(tmp_path / name)[5]["teacher_tokens"][0] for name in ("plain", "reg")
    )
    assert len(both) == len(without) + 1
    np.testing.assert_array_equal(both[:-1], without)
    models, state = build_models(reg), init_state(reg, build_models(reg))
    teacher = models.teachers["small"]
    image = jnp.asarray(open_source(reg.data, "train")[5]["image"][None])
    expected = teacher.apply(state.frozen["teachers"]["small"], teacher.prepare(image))
    parity.assert_close(both[-1], expected.class_token[0], "class token", 1e-5)

    def train(cache, dim, status):
        words = ["--config", f"{TINY}:repa", "--config.data.source=latents"]
        words += [f"--config.data.path={tmp_path / cache}", "--config.run.steps=1"]
        words += [f"--config.tokenizer.weights={folder / 'vae'}"]
        words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
        words += [f"--config.backbone.class_token_dim={dim}"]
        workdir = tmp_path / f"{cache}-{dim}"
        assert main(["train", *words, "--workdir", str(workdir), "--quiet"]) == status

    train("reg", 8, 0)
    states = [train(cache, 0, 0) or cache for cache in ("reg", "plain")]
    first, second = (restore_latest(tmp_path / f"{cache}-0")["params"] for cache in states)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    train("plain", 8, 2)
    assert "without their class tokens" in capsys.readouterr().err


def test_a_run_without_teachers_leaves_the_tokens_of_its_cache_unread(folder, tmp_path):
    encode(make_config(folder), tmp_path / "cache", teachers=True, progress=False)
    words = ["--config", f"{TINY}:vanilla", "--config.data.source=latents"]
    words += [f"--config.data.path={tmp_path / 'cache'}", "--config.run.steps=1"]
    words += [f"--config.tokenizer.weights={folder / 'vae'}"]
    assert main(["train", *words, "--workdir", str(tmp_path / "run"), "--quiet"]) == 0


def test_another_vaes_cache_is_refused_and_nothing_is_written(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder / "vae", other / "vae")
    from repae_jax.runs.pretrained import PretrainedVAE

    vae = PretrainedVAE.from_pretrained(other / "vae")
    params = jax.tree.map(lambda leaf: leaf * 1.001, vae.params)
    shutil.rmtree(other / "vae")
    PretrainedVAE(vae.module, params, vae.config, vae.statistics).save_pretrained(other / "vae")
    words = ["--config", f"{TINY}:repa", "--config.data.source=latents"]
    words += [
        f"--config.data.path={folder / 'cache'}",
        f"--config.tokenizer.weights={other / 'vae'}",
    ]
    words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
    assert main(["train", *words, "--workdir", str(tmp_path / "run"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "was made by another VAE" in message
    assert not (tmp_path / "run").exists()


def test_another_teachers_tokens_are_refused(folder, tmp_path, capsys):
    cache, other = tmp_path / "cache", tmp_path / "other.safetensors"
    encode(make_config(folder), cache, teachers=True, progress=False)
    changed = load_file(folder / "teacher.safetensors")
    save_file({name: array * 1.01 for name, array in changed.items()}, other)
    words = ["--config", f"{TINY}:repa", "--config.data.source=latents"]
    words += [f"--config.data.path={cache}", f"--config.tokenizer.weights={folder / 'vae'}"]
    words += [f"--config.teachers.small.weights={other}"]
    assert main(["train", *words, "--workdir", str(tmp_path / "run"), "--quiet"]) == 2
    assert "keeps the tokens of another teacher 'small'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    config = make_config(folder)
    config.teachers.small.weights = str(other)
    with pytest.raises(UserError, match="was begun with teachers"):  # nor are two mixed
        encode(config, cache, teachers=True, progress=False)


def test_bad_images_are_left_out_of_the_cache(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for index in range(10):
        path = tmp_path / "images" / f"class{index}" / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    (tmp_path / "images" / "class4" / "b.png").write_text("no image")
    words = ["--config", f"{TINY}:repa", f"--config.tokenizer.weights={folder / 'vae'}"]
    words += [f"--config.teachers.small.weights={folder / 'teacher.safetensors'}"]
    words += ["--config.data.source=folder", f"--config.data.path={tmp_path / 'images'}"]
    encode_it = ["encode", *words, "--output", str(tmp_path / "cache"), "--quiet"]
    assert main(encode_it) == 2
    assert "class4/b.png" in capsys.readouterr().err
    assert main([*encode_it, "--config.data.on_bad_image=skip"]) == 0
    assert "skipped 1 unreadable images" in capsys.readouterr().out
    cache = open_latents(tmp_path / "cache")
    assert len(cache) == 10
    assert cache.manifest["skipped"] == ["class4/b.png"]
    assert [cache[i]["label"] for i in range(10)] == list(range(10))


def test_the_fingerprint_is_of_the_weights_whatever_their_file(folder, tmp_path):
    config = make_config(folder)
    models = build_models(config)
    variables, _ = read_vae(config, models.tokenizer)
    assert main(["convert", str(folder / "vae"), str(tmp_path / "vae.safetensors"), "--quiet"]) == 0
    config.tokenizer.weights = str(tmp_path / "vae.safetensors")
    again, _ = read_vae(config, models.tokenizer)
    assert tokenizer_sha256(variables) == tokenizer_sha256(again)
    assert tokenizer_sha256(variables) == weights_sha256(variables["params"])  # of caches there are
    changed = jax.tree.map(np.array, variables)
    changed["params"]["encoder"]["conv_in"]["bias"][0] += 1e-3
    assert tokenizer_sha256(changed) != tokenizer_sha256(variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.source": "latents"}, "is 'latents' already"),
        ({"tokenizer.weights": ""}, "config.tokenizer.weights is empty"),
    ],
)
def test_what_cannot_be_encoded_is_said(change, message, folder, tmp_path):
    config = make_config(folder)
    for key, value in change.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    with pytest.raises(UserError, match=message):
        encode(config, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_a_trained_vae_needs_images(folder):
    from repae_jax.config.validate import validate
    from repae_jax.errors import UserError

    config = tiny.get_config("repae")
    config.data.update(source="latents", path=str(folder / "cache"))
    with pytest.raises(UserError, match=r"config.train has 'tokenizer'"):
        validate(config)
    assert "latents" in to_json(config)
