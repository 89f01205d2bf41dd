"""DiT's checkpoints become runs, and come back bit by bit."""

import argparse

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
from foreign_trips import make_trip, write_vae
from original_dit import ORIGINAL, REASON, original_dit
from saved import assert_same_content, saved_content
from torch_dit import make_dit

from repae_jax.cli import main
from repae_jax.config import backbone, dit256
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.checkpoint_parts import SECOND_HALF, kind_of, parts_of
from repae_jax.interop.detect_format import detect
from repae_jax.runs.build import build_models
from repae_jax.runs.dit_args import config_of_dit, dit_args
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_import import bare_checkpoint, import_run

SIDE, CHANNELS, CLASSES, STEPS = 8, 2, 10, 3
MODEL = dict(
    input_size=SIDE, patch_size=2, in_channels=CHANNELS, hidden_size=32, depth=2, num_heads=2,
    num_classes=CLASSES,
)  # fmt: skip
ARGS = dict(
    model="own", image_size=256, num_classes=CLASSES, epochs=3, global_batch_size=8, global_seed=5,
    vae="ema", ckpt_every=50,
)  # fmt: skip


def trained(make, folder):
    """A checkpoint after some steps of AdamW, as DiT's train.py saves it."""
    model, ema = (parity.randomise(make(**MODEL), seed=seed) for seed in (1, 2))
    for module in (model, ema):
        module.pos_embed.requires_grad = False
    ema.pos_embed.data = model.pos_embed.data.clone()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    x = torch.tensor(parity.normal(2, CHANNELS, SIDE, SIDE, seed=3))
    for _ in range(STEPS):
        model(x, torch.tensor([3, 900]), torch.tensor([1, CLASSES])).square().mean().backward()
        opt.step()
        opt.zero_grad()
    path = folder / f"{STEPS:07d}.pt"
    content = {"model": model.state_dict(), "ema": ema.state_dict(), "opt": opt.state_dict()}
    torch.save(content | {"args": argparse.Namespace(**ARGS)}, path)
    return model, ema, path


REFERENCES = {"torch": make_dit, "original": original_dit}
NAMES = ["torch", pytest.param("original", marks=pytest.mark.skipif(not ORIGINAL, reason=REASON))]


@pytest.fixture(scope="module", params=NAMES)
def trip(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, ema, path = trained(REFERENCES[request.param], folder)
    config = tiny.get_config("vanilla")
    config.backbone = backbone(
        family="dit", patch_size=2, hidden_size=32, depth=2, num_heads=2, encoder_depth=1
    )
    config.objective.interpolant = "ddpm"
    config.sampling.update(method="ddpm", steps=3)
    config.tokenizer.weights = str(write_vae(folder))
    return make_trip(model, ema, path, config)


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs) == {"model", "ema", "opt", "args"}
    assert vars(ours.pop("args")) == vars(theirs.pop("args"))
    for key in theirs:
        assert_same_content(ours[key], theirs[key], key)


def test_the_run_predicts_what_their_models_predict(trip):
    models = build_models(trip.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = load_state(trip.workdir, trip.config, models, device, optimizers=True)
    assert int(state.step) == STEPS
    np.testing.assert_allclose(state.ema["latent_norm"]["var"], 0.18215**-2, rtol=1e-6)
    x, steps = parity.normal(3, SIDE, SIDE, CHANNELS, seed=5), np.array([0, 400, 999])
    labels, constants = np.array([1, CLASSES, 9]), {"constants": state.ema["constants"]}
    for module, params in (
        (trip.model, state.params["backbone"]),
        (trip.ema, state.ema["params"]),
    ):
        with torch.no_grad():
            expected = module(parity.to_nchw(x), torch.tensor(steps), torch.tensor(labels))
        ours = models.backbone.apply(
            {"params": params, **constants}, x, np.float32(steps) / 1000, {"label": labels}
        )
        both = np.concatenate([ours.prediction, ours.extra["variance"]], axis=-1)
        parity.assert_close(both, parity.to_nhwc(expected), "noise and variance")


def test_a_checkpoint_is_told_from_a_sits(trip, capsys):
    assert detect(trip.checkpoint).format == "dit"
    assert main(["inspect", str(trip.checkpoint)]) == 0
    assert "training checkpoint of DiT" in capsys.readouterr().out
    content = files.read_stored(trip.checkpoint)
    args = argparse.Namespace(path_type="Linear", prediction="velocity")
    parts = parts_of(content | {"args": args}, source="it")
    assert kind_of(parts) == "repa"  # the kind of a SiT without latent statistics
    assert SECOND_HALF in parts["notes"]


def test_bare_weights_are_what_the_configuration_says(trip, tmp_path):
    torch.save(trip.ema.state_dict(), tmp_path / "bare.pt")
    content = bare_checkpoint(detect(tmp_path / "bare.pt").content)
    state = import_run(content, tmp_path / "run", trip.config, source="it", progress=False)
    assert int(state.step) == 0
    name = "final_layer.linear.weight"
    kernel = state.params["backbone"]["final_layer"]["linear"]["kernel"]
    np.testing.assert_array_equal(kernel.T, trip.ema.state_dict()[name].numpy())


def published():
    with torch.device("meta"):
        shapes = make_dit(
            input_size=32, patch_size=2, in_channels=4, num_classes=CLASSES, hidden_size=1152,
            depth=28, num_heads=16,
        ).state_dict()  # fmt: skip
    return {n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in shapes.items()}


def test_the_configuration_follows_from_the_checkpoint():
    config = config_of_dit({"ema": published(), "args": argparse.Namespace(**ARGS)}, source="it")
    assert config.backbone.arch == "DiT-XL/2"
    assert (config.data.resolution, config.data.num_classes, config.seed) == (256, CLASSES, 5)
    assert (config.batch_size, config.objective.interpolant) == (8, "ddpm")
    assert (config.sampling.method, config.sampling.guidance_channels) == ("ddpm", 3)
    config.tokenizer.weights = "somewhere"
    validate(config)


def test_arguments_go_out_and_come_back():
    config = dit256()
    config.seed = 11
    back = config_of_dit({"ema": published(), "args": dit_args(config)}, source="it")
    assert back.to_dict() == config.to_dict()


def test_another_size_is_named():
    tensors = published()
    tensors = {name: a for name, a in tensors.items() if not name.startswith("blocks.27.")}
    with pytest.raises(UserError, match=r"'depth': 27.* is none of the published"):
        config_of_dit({"ema": tensors}, source="it")
