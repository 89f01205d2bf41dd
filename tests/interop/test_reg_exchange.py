"""REG's checkpoints become runs, and come back bit by bit."""

import argparse

import jax
import numpy as np
import parity
import pytest
import tiny
import torch
import torch_class_token
from foreign_trips import make_trip, write_vae
from original_reg import REASON, REG, original_sit
from saved import assert_same_content, saved_content

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.interop.detect_format import detect
from repae_jax.runs.build import build_models
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_args import args_from_config, config_from_args
from repae_jax.runs.original_import import bare_checkpoint, config_of

STEPS = 3
MODEL = dict(
    latent_size=8, latent_channels=2, patch_size=2, hidden_size=16, depth=2, num_heads=2,
    num_classes=10, encoder_depth=1, teacher_dims=(8,), projector_dim=8, class_token_dim=8,
)  # fmt: skip
ARGS = dict(
    exp_name="reg", model="SiT-XL/2", enc_type="dinov2-vit-b", proj_coeff=0.5, cls=0.03,
    encoder_depth=8, path_type="linear", weighting="uniform", mixed_precision="fp16", qk_norm=False,
    resolution=256, num_classes=1000, batch_size=256, learning_rate=1e-4,
)  # fmt: skip
SOURCES = ["torch", pytest.param("original", marks=pytest.mark.skipif(not REG, reason=REASON))]


def make(source, seed):
    build = original_sit if source == "original" else torch_class_token.SiT
    model = parity.randomise(build(**MODEL), seed=seed)
    model.pos_embed.requires_grad = False
    model.pos_embed.data[:, 0] = 0.0
    return model


def outputs(source, model, x, t, labels, token):
    if source == "torch":
        return model(x, t, labels, token)
    velocity, projections, token = model(x, t, labels, cls_token=token)
    return velocity, token, projections


@pytest.fixture(scope="module", params=SOURCES)
def trip(request, tmp_path_factory):
    """A checkpoint after some steps of AdamW, as REG's train.py saves it, its run, its export."""
    folder = tmp_path_factory.mktemp("reg")
    model, ema = (make(request.param, seed) for seed in (1, 2))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    x, token = torch.tensor(parity.normal(2, 2, 8, 8, seed=3)), torch.ones(2, 8)
    for _ in range(STEPS):
        found = outputs(
            request.param, model, x, torch.tensor([0.2, 0.9]), torch.tensor([1, 9]), token
        )
        sum(part.square().mean() for part in (*found[:2], *found[2])).backward()
        opt.step()
        opt.zero_grad()
    path = folder / "0000003.pt"
    content = dict(
        model=model.state_dict(), ema=ema.state_dict(), opt=opt.state_dict(),
        args=argparse.Namespace(**ARGS), steps=STEPS,
    )  # fmt: skip
    torch.save(content, path)
    config = tiny.get_config("repa")
    config.backbone.class_token_dim = 8
    config.tokenizer.weights = str(write_vae(folder))
    return request.param, make_trip(model, ema, path, config)


def test_a_checkpoint_comes_back_bit_by_bit(trip):
    _, trip = trip
    theirs, ours = saved_content(trip.checkpoint), saved_content(trip.exported)
    assert set(ours) == set(theirs) == {"model", "ema", "opt", "args", "steps"}
    assert vars(ours.pop("args")) == vars(theirs.pop("args"))
    for key in theirs:
        assert_same_content(ours[key], theirs[key], key)


def test_the_run_predicts_what_they_predict(trip):
    source, trip = trip
    models = build_models(trip.config)
    state = load_state(
        trip.workdir, trip.config, models, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    x, token = parity.normal(3, 8, 8, 2, seed=5), parity.normal(3, 8, seed=6)
    t, labels = np.array([0.1, 0.5, 0.9], np.float32), np.array([0, 10, 4])
    with torch.no_grad():
        velocity, of_class, _ = outputs(
            source, trip.ema, parity.to_nchw(x), torch.tensor(t), torch.tensor(labels),
            torch.tensor(token),
        )  # fmt: skip
    variables = {name: state.ema[name] for name in ("params", "constants")}
    ours = models.backbone.apply(variables, x, t, {"label": labels}, token)
    parity.assert_close(ours.prediction, parity.to_nhwc(velocity), "latents")
    parity.assert_close(ours.extra["class_token"], of_class, "class token")


def test_their_arguments_make_the_configuration_and_back():
    config = config_from_args(ARGS, "repa", source="it")
    assert config.backbone.class_token_dim == 768
    assert config.objective.class_token_weight == 0.03
    assert args_from_config(config)["cls"] == 0.03
    plain = config_from_args({**ARGS, "cls": None}, "repa", source="it")
    assert plain.backbone.class_token_dim == 0
    assert "cls" not in args_from_config(plain)
    with pytest.raises(UserError, match="'cls' is of REG, but 'enc_type' names no teacher"):
        config_from_args({**ARGS, "enc_type": "None"}, "repa", source="it")


def test_bare_weights_are_told_by_their_tensors(tmp_path, capsys):
    """Of the published sizes; here the width alone is."""
    sizes = dict(hidden_size=384, depth=1, num_heads=6, latent_channels=4, teacher_dims=(768,))
    net = torch_class_token.SiT(**{**MODEL, **sizes, "class_token_dim": 768})
    torch.save(net.state_dict(), tmp_path / "last.pt")
    assert main(["inspect", str(tmp_path / "last.pt")]) == 0
    assert "a class token of width 768 (REG)" in capsys.readouterr().out
    content = detect(tmp_path / "last.pt").content
    with pytest.raises(UserError, match="'model' is None"):  # a depth of 1 is none of the published
        config_of(bare_checkpoint(content), source="it")


def test_a_ddt_with_a_class_token_is_refused_in_a_line(tmp_path):
    net = torch_class_token.DDT(
        input_size=8, patch_size=1, in_channels=32, hidden_size=[48, 64], depth=[2, 1],
        num_heads=[4, 2], num_classes=5, time_tokens=2, class_tokens=3, class_token_dim=12,
    )  # fmt: skip
    state = parity.state_of(net)
    with pytest.raises(UserError, match="denoises a class token"):
        config_of({"model": state, "ema": state, "steps": 1}, source="it")
