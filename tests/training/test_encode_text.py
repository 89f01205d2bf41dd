"""Caches of images with captions: the text that `encode` keeps, and with --text its states."""

import shutil

import jax
import numpy as np
import parity
import pytest
import tiny_text
from captioned import TEXTS, write_captioned
from latent_cache import write_cache
from packing import content
from text_weights import write_text_weights

from repae_jax.cli import main
from repae_jax.data.caption_states import PadStates
from repae_jax.data.latents import open_latents
from repae_jax.data.pipeline import train_batches
from repae_jax.data.tokens import Tokenize, train_tokenizer
from repae_jax.interop.text_encoder import read_text_encoder
from repae_jax.models.text_encoders.base import encode_captions
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import build_models, build_objective, build_optimizers, latent_shape
from repae_jax.runs.captions import make_tokenize, tokenized
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.initial_state import init_state
from repae_jax.training.noise import sample_draws
from repae_jax.training.program import Program
from repae_jax.training.step import make_train_step

pytestmark = pytest.mark.slow  # the fixture encodes twice

CAPTIONS = [TEXTS[number % 4] for number in range(10)]


def words(folder, **keys):
    keys = {
        "tokenizer.weights": folder / "vae", "text_encoder.weights": folder / "lm",
        "teachers.small.weights": folder / "teacher.safetensors", "data.source": "captions",
        "data.path": folder / "pictures", "data.name": "", **keys,
    }  # fmt: skip
    named = f"{tiny_text.CONFIG}:repa"
    return ["--config", named, *(f"--config.{key}={value}" for key, value in keys.items())]


def make_config(folder, **data):
    config = tiny_text.get_config("repa")
    config.tokenizer.weights = str(folder / "vae")
    config.text_encoder.weights = str(folder / "lm")
    config.teachers.small.weights = str(folder / "teacher.safetensors")
    config.data.update(data)
    return config


def run(command, *more, status=0):
    assert main([command, *map(str, more), "--quiet"]) == status


def encode(folder, output, *more, status=0, **keys):
    more = ["--output", output, "--images", "--per-shard", 4, "--batch-size", 8, *more]
    run("encode", *words(folder, **keys), *more, status=status)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A VAE, a teacher, a text encoder, pictures with captions, and caches of text and states."""
    import diffusers_vae

    folder = tmp_path_factory.mktemp("encode_text")
    config = tiny_text.get_config()
    peer = parity.randomise(diffusers_vae.make_vae(build_models(config).tokenizer), seed=3)
    peer.save_pretrained(folder / "vae")
    write_text_weights(folder, config)
    write_captioned(folder / "pictures", CAPTIONS)
    encode(folder, folder / "plain")
    encode(folder, folder / "states", "--text")
    return folder


def kept(text):
    return text if isinstance(text, str) else tuple(text) if len(text) > 1 else text[0]


def test_every_caption_is_kept_and_its_valid_states(folder):
    config = make_config(folder)
    encoder, tokenize = build_models(config).text_encoder, make_tokenize(config)
    variables = read_text_encoder(folder / "lm", encoder)
    for name in ("plain", "states"):
        cache = open_latents(folder / name)
        assert [cache[i]["caption"] for i in range(10)] == list(map(kept, CAPTIONS))
        assert cache.caption(1) == "two rings"
        assert cache.manifest["made"]["captions"] is True
    assert "caption_states" not in open_latents(folder / "plain")[0]
    for index, text in enumerate(CAPTIONS):
        texts = [text] if isinstance(text, str) else text
        inputs = tokenized(tokenize, texts)
        expected = encode_captions(encoder, variables, *inputs.values())
        found = cache[index]["caption_states"]
        assert len(found) == len(texts)
        for number, length in enumerate(inputs["caption_length"]):
            assert found[number].states.shape == (length, 16)
            padded = PadStates(24)(found[number])
            np.testing.assert_array_equal(padded["mask"], expected["mask"][number])
            parity.assert_close(padded["tokens"], expected["tokens"][number], "states", 1e-5)
            assert not padded["tokens"][length:].any()


def test_half_of_the_bytes_and_of_the_digits(folder, tmp_path):
    encode(folder, tmp_path / "half", "--text", "--dtype", "bfloat16")
    whole, half = open_latents(folder / "states"), open_latents(tmp_path / "half")
    for first, second in zip(whole[1]["caption_states"], half[1]["caption_states"], strict=True):
        assert second.states.dtype.name == "bfloat16"
        np.testing.assert_allclose(second.states.astype(np.float32), first.states, rtol=2**-8)


def test_a_shard_that_is_made_again_has_the_same_bytes(folder, tmp_path):
    shutil.copytree(folder / "states", tmp_path / "cache")
    (tmp_path / "cache" / "shard-00001-of-00003.array_record").unlink()
    encode(folder, tmp_path / "cache", "--text")
    assert content(tmp_path / "cache") == content(folder / "states")


def test_training_on_states_is_training_on_captions(folder):
    """Also of images with several captions, which the same draws choose from."""
    path = str(folder / "states")
    config = make_config(folder, source="latents", path=path)
    models = build_models(config)
    state = init_state(config, models)
    step = jax.jit(make_train_step(models, build_objective(config), build_optimizers(config)))
    streams = [
        train_batches(open_latents(path), batch_size=8, seed=0, **read)
        for read in ({"tokenize": make_tokenize(config)}, {"pad_states": PadStates(24)})
    ]
    states = [state, state]
    for number in range(3):
        draws = sample_draws(
            jax.random.key(number), 8, latent_shape(config, models), condition_drop=0.25
        )
        metrics = []
        for which, stream in enumerate(streams):
            batch = next(stream)
            assert ("tokens" in batch) == (which == 1)
            assert ("caption_ids" in batch) == (which == 0)
            states[which], found = step(states[which], batch, draws)
            metrics.append(found)
        assert not any(found.pop("skipped") for found in metrics)
        for name, value in metrics[0].items():
            parity.assert_close(metrics[1][name], value, name)
    for stream in streams:
        stream.close()
    compiled = Program(config, models, make_mesh(1, 1)).arguments()[1]
    assert jax.tree.map(shape_of, dict(compiled)) == jax.tree.map(shape_of, dict(batch))


def shape_of(array):
    return array.shape, array.dtype


def test_the_program_of_cached_states_has_no_text_encoder(folder):
    flops = {}
    for name in ("plain", "states"):
        config = make_config(folder, source="latents", path=str(folder / name))
        program = Program(config, build_models(config), make_mesh(1, 1))
        assert ("states of captions" in str(program.cache)) == (name == "states")
        flops[name] = program.flops()
    assert flops["states"] < flops["plain"]


@pytest.mark.parametrize("cache", ["plain", "states"])
def test_the_commands_train_on_the_cache_and_sample(cache, folder, tmp_path):
    keys = {"data.source": "latents", "data.path": folder / cache, "run.sample_every": 2}
    run("train", *words(folder, **keys), "--workdir", tmp_path / "run")
    assert restore_latest(tmp_path / "run")["step"] == 4
    assert list((tmp_path / "run").rglob("*.png"))
    more = ["--output", tmp_path / "x.png", "--prompt", "a red disc"]
    run("sample", "--workdir", tmp_path / "run", *more)
    assert (tmp_path / "x.png").is_file()


def refused(folder, tmp_path, capsys, message, **keys):
    keys = {"data.source": "latents", "data.path": folder / "states", **keys}
    run("train", *words(folder, **keys), "--workdir", tmp_path / "run", status=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_states_of_another_encoder_or_tokenizer_are_refused(folder, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(folder / "lm", tmp_path / "lm")
    tensors = load_file(other / "model.safetensors")
    save_file({name: array * 1.01 for name, array in tensors.items()}, other / "model.safetensors")
    refused(folder, tmp_path, capsys, "the states of captions by another text encoder",
            **{"text_encoder.weights": other})  # fmt: skip
    tokenizer = train_tokenizer(["a red disc", "two rings"], 280)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    refused(folder, tmp_path, capsys, "the states of captions by another tokenizer",
            **{"text_encoder.tokenizer": tmp_path / "tokenizer.json"})  # fmt: skip
    refused(folder, tmp_path, capsys, "set --config.text_encoder.length=24",
            **{"text_encoder.length": 32})  # fmt: skip


def test_a_cache_without_captions_is_refused(folder, tmp_path, capsys):
    write_cache(tmp_path / "classes", images=True)
    refused(folder, tmp_path, capsys, "keeps no captions", **{"data.path": tmp_path / "classes"})


def test_what_does_not_go_together_is_said(folder, tmp_path, capsys):
    encode(folder, tmp_path / "x", "--mirrored", status=2)
    assert "--mirrored encodes mirrored images, which no longer fit" in capsys.readouterr().err
    keys = {"data.source": "digits", "data.num_classes": 10}
    encode(folder, tmp_path / "x", status=2, **keys)
    assert "has no captions" in capsys.readouterr().err
    encode(folder, folder / "plain", "--text", status=2)
    assert "was begun with text = None" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_tokenizer_is_known_by_its_content_whatever_its_layout(folder, tmp_path):
    import json

    path = folder / "lm" / "tokenizer.json"
    loaded = json.loads(path.read_text())
    (tmp_path / "a.json").write_text(json.dumps(loaded, indent=3))
    first, second = Tokenize(str(path), 24, 0), Tokenize(str(tmp_path / "a.json"), 16, 0)
    assert first.sha256() == second.sha256()
    train_tokenizer(["a"], 280).save(str(tmp_path / "b.json"))
    assert Tokenize(str(tmp_path / "b.json"), 24, 0).sha256() != first.sha256()
