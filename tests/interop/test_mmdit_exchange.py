"""Checkpoints of REPA's text-to-image training become runs, and come back bit by bit."""

import argparse

import jax
import numpy as np
import original_text
import parity
import pytest
import torch
import torch_text_backbones
from foreign_text import text_config
from foreign_trips import make_trip, write_vae
from saved import assert_same_content, saved_content
from weight_files import inspect, refused

from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.interop.formats import FORMATS
from repae_jax.runs.build import build_models
from repae_jax.runs.mmdit_args import mmdit_args
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_import import bare_checkpoint, config_of, import_run
from repae_jax.runs.original_parts import trained_parts

STEPS = 2
MODEL = dict(  # as its original sets them: 32 * depth wide, 16 x 16 tokens, text 768 wide
    size=32, channels=2, patch_size=2, hidden_size=64, depth=2, num_heads=2, text_length=4,
    text_width=768, encoder_depth=1, teacher_dims=(8,), projector_dim=8,
)  # fmt: skip
ARGS = dict(
    exp_name="t2i", enc_type="dinov2-vit-b", proj_coeff=0.5, encoder_depth=8, path_type="linear",
    weighting="uniform", mixed_precision="fp16", qk_norm=False, resolution=256, batch_size=64,
    learning_rate=2e-4, cfg_prob=0.1, seed=3, max_train_steps=150_000, sampling_steps=10_000,
    data_dir="../data/coco256_features", resume_step=0,
)  # fmt: skip


def make(source, seed):
    if source == "original":
        if not original_text.REPA:
            pytest.skip(original_text.REASONS["mmdit"])
        return parity.randomise(original_text.mmdit(**MODEL), seed=seed)
    return parity.randomise(torch_text_backbones.MMDiT(**MODEL), seed=seed)


@pytest.fixture(scope="module", params=["torch", "original"])
def trip(request, tmp_path_factory):
    """A checkpoint after some steps of AdamW, as train_t2i.py saves it, its run, its export."""
    folder = tmp_path_factory.mktemp("mmdit")
    model, ema = (make(request.param, seed) for seed in (1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    x, t, text = parity.normal(2, 2, 32, 32, seed=3), [0.2, 0.9], parity.normal(2, 4, 768, seed=4)
    for _ in range(STEPS):
        velocity, projections = model(torch.tensor(x), torch.tensor(t), context=torch.tensor(text))
        (velocity.square().mean() + projections[0].square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    content = dict(
        model=model.state_dict(), ema=ema.state_dict(), opt=optimizer.state_dict(),
        args=argparse.Namespace(**ARGS), steps=STEPS,
    )  # fmt: skip
    torch.save(content, folder / "0000002.pt")
    config = configuration()
    config.tokenizer.weights = str(write_vae(folder))
    return make_trip(model, ema, folder / "0000002.pt", config)


def configuration(**changes):
    sizes = dict(hidden_size=64, depth=2, num_heads=2) | changes
    config = text_config("mmdit", "linear", 768, "repa", **sizes)
    config.data.resolution = 128  # latents of 32 x 32
    return config


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs) == {"model", "ema", "opt", "args", "steps"}
    assert vars(ours.pop("args")) == vars(theirs.pop("args"))
    for key in ("model", "ema"):  # a buffer's place follows from the order of definitions
        assert_same_content(dict(sorted(ours.pop(key).items())), dict(sorted(theirs[key].items())))
    for key in ours:
        assert_same_content(ours[key], theirs[key], key)


def test_their_models_load_what_comes_back(trip):
    content = saved_content(trip.exported)
    trip.model.load_state_dict(content["model"], strict=True)
    trip.ema.load_state_dict(content["ema"], strict=True)
    torch.optim.AdamW(trip.model.parameters()).load_state_dict(content["opt"])


def test_the_run_predicts_what_their_models_predict(trip):
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device, optimizers=True)
    assert int(state.step) == STEPS
    x, tokens = parity.normal(3, 32, 32, 2, seed=5), parity.normal(3, 4, 768, seed=6)
    t, mask = np.array([0.0, 0.4, 1.0], np.float32), np.ones((3, 4), bool)
    apply = parity.quick_jit(models.backbone.apply)
    trained = {"params": state.params["backbone"], **state.frozen["backbone"]}
    averaged = {name: state.ema[name] for name in ("params", "constants")}
    for module, variables in ((trip.model, trained), (trip.ema, averaged)):
        with torch.no_grad():
            velocity, projections = module(
                parity.to_nchw(x), torch.tensor(t), context=torch.tensor(tokens)
            )
        ours = apply(variables, x, t, {"tokens": tokens, "mask": mask})
        parity.assert_close(ours.prediction, parity.to_nhwc(velocity), "velocity")
        parity.assert_close(ours.projections[0], projections[0], "projection")
    np.testing.assert_allclose(state.ema["latent_norm"]["var"], 0.18215**-2, rtol=1e-6)


def test_inspect_says_what_it_is(trip, tmp_path, capsys):
    said = inspect(trip.checkpoint, capsys)
    assert (said["format"], said["step"]) == (FORMATS["mmdit"], str(STEPS))
    assert said["MMDiT"] == (
        "own size: width 64, depth 2, 2 heads, patch 2, latents 32 x 32 x 2, text of width 768, "
        "heads for teachers of width 8"
    )
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    assert inspect(tmp_path / "bare.pt", capsys)["format"] == FORMATS["mmdit-tensors"]
    content = bare_checkpoint(detect(tmp_path / "bare.pt").content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0


@pytest.fixture(scope="module")
def published():
    """The tensors of the published MMDiT, zeros without memory."""
    sizes = dict(
        size=32, channels=4, patch_size=2, hidden_size=768, depth=24, num_heads=24, text_width=768,
        encoder_depth=8, teacher_dims=(768,), projector_dim=2048,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = torch_text_backbones.MMDiT(**sizes).state_dict()
    return {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}


def checkpoint_of(tensors, **args):
    return {"model": tensors, "ema": tensors, "steps": 4, "args": argparse.Namespace(**args)}


def test_the_configuration_follows_from_the_checkpoint(published):
    config = config_of(checkpoint_of(published, **ARGS), source="it")
    assert (config.backbone.arch, config.backbone.encoder_depth) == ("MMDiT-24/2", 8)
    assert (config.text_encoder.arch, config.condition.embedding) == ("clip-l-text", "linear")
    assert (config.tokenizer.arch, config.data.resolution) == ("f8d4", 256)
    assert (config.name, config.dtype, config.batch_size, config.seed) == (
        "t2i_repa", "bfloat16", 64, 3
    )  # fmt: skip
    assert (config.time.weighting, config.time.shift) == ("uniform", 1.0)
    assert (config.sampling.method, config.sampling.steps) == ("euler", 50)
    assert config.optimizer.backbone.learning_rate == 2e-4
    assert config.run.steps == 150_000
    assert [entry.arch for entry in config.teachers.values()] == ["dinov2-b"]
    config.tokenizer.weights = "somewhere"
    validate(config)
    bare = config_of(bare_checkpoint(published), source="it")
    assert [entry.arch for entry in bare.teachers.values()] == ["dinov2-b"]
    assert bare.run.steps == 400_000


def test_arguments_go_out_and_come_back(published):
    config = config_of(checkpoint_of(published, **ARGS), source="it")
    theirs = mmdit_args(config)
    same = ("enc_type", "proj_coeff", "encoder_depth", "batch_size", "learning_rate", "seed")
    assert {name: theirs[name] for name in same} == {name: ARGS[name] for name in same}
    back = config_of(checkpoint_of(published, **theirs), source="it")
    assert back.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(enc_type="dinov9-vit-b"), "unknown teacher 'dinov9-vit-b'"),
        (dict(batch_size="many"), "its argument batch_size"),
        (
            {"context_embedder.weight": (768, 1024)},
            "text is 1024 wide, but the states of clip-l",
        ),
        (
            {"x_embedder.proj.weight": (768, 16, 2, 2)},
            "latents have 16 channels, those of REPA's",
        ),
        ({"x_embedder.proj.weight": (768, 4)}, "not the weights of an MMDiT of REPA"),
        ({"projectors.0.4.weight": (0, 2048)}, "tensor 'projectors.0.4.weight' is empty"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(published, change, message):
    tensors = {n: np.zeros(s, np.float32) for n, s in change.items() if isinstance(s, tuple)}
    args = {name: value for name, value in change.items() if name not in tensors}
    with pytest.raises(UserError, match=message):
        config_of(checkpoint_of(published | tensors, **(ARGS | args)), source="it")


def test_heads_that_no_tensor_shows_are_refused(trip, tmp_path):
    config = configuration(num_heads=4)
    with pytest.raises(UserError, match="num_heads 4 and hidden_size 64: REPA's code gives every"):
        trained_parts(build_models(config), config, "it", statistics=True)
    config.tokenizer.weights = trip.config.tokenizer.weights
    with pytest.raises(UserError, match="num_heads 4 and hidden_size 64"):
        import_run(detect(trip.checkpoint).content, tmp_path / "run", config, source="it")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_kind_is_refused_in_a_line(trip, tmp_path, capsys):
    line = refused(["convert", trip.workdir, tmp_path / "x", "--to", "fuse-dit"], capsys)
    assert "its backbone is a MMDiT, whose checkpoint for the original is a file" in line
    spoiled = saved_content(trip.checkpoint)
    del spoiled["ema"]["pos_embed"]
    torch.save(spoiled, tmp_path / "it.pt")
    with pytest.raises(UserError, match="tensor 'pos_embed' is missing"):
        import_run(detect(tmp_path / "it.pt").content, tmp_path / "r", trip.config, source="it")
    assert not (tmp_path / "r").exists()
