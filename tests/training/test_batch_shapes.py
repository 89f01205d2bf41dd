"""The program that is compiled ahead is the one that training runs: its batches, its work."""

import contextlib
import json

import jax
import numpy as np
import pytest
import tiny
import tiny_text
from runs import TINY

from repae_jax.aot import report as aot_report
from repae_jax.aot import topologies
from repae_jax.cli import main
from repae_jax.data.manifest import FORMAT, write_manifest
from repae_jax.errors import UserError
from repae_jax.parallel.flops import count_flops
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.build import build_models, state_shapes
from repae_jax.training.program import Program


def make_config(recipe="repa", **data):
    config = tiny.get_config(recipe)
    config.tokenizer.weights = "vae.safetensors"  # nobody reads it
    config.data.update(data)
    return config


def program(config, **options):
    return Program(config, build_models(config), make_mesh(1, 1), **options)


def work(config):
    """Operations of the encoder and of the teachers for one image."""
    models, side = build_models(config), config.data.resolution
    state = state_shapes(config, models)
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)

    def encoder(params, images):
        return models.tokenizer.apply({"params": params}, images, method="encode")

    teachers = [
        count_flops(teacher.apply, state.frozen["teachers"][name], images)
        for name, teacher in models.teachers.items()
    ]
    return count_flops(encoder, state.params["tokenizer"], images), sum(teachers)


@pytest.mark.parametrize("recipe", ["repa", "vanilla"])
def test_cached_latents_are_not_encoded_and_cached_tokens_are_not_made(recipe, tmp_path):
    images = make_config(recipe)
    latents = make_config(recipe, source="latents", path=str(tmp_path / "later"))
    encoder, teachers = work(images)
    assert encoder > 0
    assert (teachers > 0) == (recipe == "repa")
    found = program(images).flops() - program(latents).flops()
    assert found == encoder + teachers
    found = program(images).flops() - program(latents, kept=("images",)).flops()
    assert found == encoder


# --- what the command says of it ---


@pytest.fixture
def compiled_here(monkeypatch):
    """The command compiles for this machine's device in the place of a TPU."""
    monkeypatch.setattr(topologies, "compiler", lambda effort: contextlib.nullcontext())
    monkeypatch.setattr(aot_report, "absent_devices", lambda topology: jax.devices()[:1])
    compile_ = lambda topology, function, arguments: function.lower(*arguments).compile()  # noqa: E731
    monkeypatch.setattr(aot_report, "compile_for", compile_)


def write_cache(folder, shape=(8, 8, 2), **made):
    """The manifest of a cache without latents."""
    made = {"mirrored": False, "images": False, "teachers": {}, "resolution": 32, **made}
    shard = {"file": "shard-00000-of-00001.array_record", "count": 1, "bytes": 1, "sha256": "0"}
    manifest = {
        "format": FORMAT, "kind": "latents", "num_classes": 10, "classes": None, "count": 1,
        "shards": [shard], "made": {**made, "vae": "0", "latent_shape": list(shape)},
        "statistics": {"mean": [0.0, 0.0], "var": [1.0, 1.0]},
    }  # fmt: skip
    folder.mkdir()
    write_manifest(folder, manifest)


def compile_words(path, *more):
    words = ["--config", f"{TINY}:repa", "--topology", "v5e:1x1"]
    words += ["--config.tokenizer.weights=none", "--config.data.source=latents"]
    return ["compile", *words, f"--config.data.path={path}", *more]


@pytest.mark.slow
def test_the_command_says_what_a_cache_is_taken_to_hold(compiled_here, tmp_path, capsys):
    later, there = tmp_path / "later", tmp_path / "there"
    flops = {}
    for kept in ("tokens", "images"):
        assert main(compile_words(later, "--json", "--cached", kept)) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["batches"] == (
            f"cached latents and {kept}, which is assumed: there is no cache yet (--cached sets it)"
        )
        flops[kept] = report["flops"]
    assert flops["images"] - flops["tokens"] == work(make_config())[1]
    # A manifest is believed, whatever --cached says.
    write_cache(there, images=True)
    assert main(compile_words(there, "--json", "--cached", "tokens")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["flops"] == flops["images"]
    assert report["batches"] == f"cached latents and images, as {there / 'manifest.json'} says"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, "keeps neither images nor the tokens of the teachers small"),
        ({"teachers": {"other": "0"}}, "keeps neither images nor the tokens of the teachers small"),
        ({"images": True, "shape": (4, 4, 2)}, "holds latents of shape (4, 4, 2)"),
    ],
)
def test_a_cache_that_does_not_suit_is_said(made, message, compiled_here, tmp_path, capsys):
    write_cache(tmp_path / "cache", **made)
    assert main(compile_words(tmp_path / "cache")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("kept", "dim", "tokens"), [(True, 8, 17), (True, 0, 17), (False, 0, 16)])
def test_a_caches_class_tokens_are_in_its_batches(kept, dim, tokens, tmp_path):
    more = {"class_tokens": True} if kept else {}
    write_cache(tmp_path / "cache", teachers={"small": "0"}, **more)
    config = make_config(source="latents", path=str(tmp_path / "cache"))
    config.backbone.class_token_dim = dim
    _, batch, *_ = program(config).arguments()
    assert [leaf.shape for leaf in batch["teacher_tokens"]] == [(8, tokens, 8)]
    jax.eval_shape(program(config).step, *program(config).arguments())


def text_program(path):
    config = tiny_text.get_config("repa")
    config.tokenizer.weights = "vae.safetensors"  # nobody reads it
    config.data.update(source="latents", path=str(path))
    return program(config)


TEXT = {"encoder": "0", "tokenizer": "0", "length": 24, "width": 16}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"caption_ids": ((8, 24), "int32"), "caption_length": ((8,), "int32")}),
        ({"text": TEXT}, {"tokens": ((8, 24, 16), "float32"), "mask": ((8, 24), "bool")}),
    ],
)
def test_a_caches_captions_are_in_its_batches_as_ids_or_states(more, expected, tmp_path):
    write_cache(tmp_path / "cache", images=True, captions=True, **more)
    built = text_program(tmp_path / "cache")
    _, batch, *_ = built.arguments()
    named = {"label", "latent_mean", "latent_std", "image"}
    found = {k: (leaf.shape, leaf.dtype.name) for k, leaf in batch.items() if k not in named}
    assert found == expected
    assert ("states of captions" in str(built.cache)) == bool(more)


def test_a_cache_without_captions_does_not_suit_a_run_with_captions(tmp_path):
    write_cache(tmp_path / "cache", images=True)
    with pytest.raises(UserError, match="keeps no captions, which .* encode anew"):
        text_program(tmp_path / "cache").arguments()
    write_cache(tmp_path / "damaged", images=True, captions=True, text={**TEXT, "width": 0})
    with pytest.raises(UserError, match=r"made\.text\.width is 0"):
        text_program(tmp_path / "damaged").arguments()
