"""The weights of the SiT's authors: another last layer, another direction of time."""

import argparse

import numpy as np
import parity
import pytest
import torch
import torch_sit
from exported import load_sit
from runs import TINY
from sits import sit_of
from weight_files import (
    assert_same_trees,
    inspect,
    refused,
)

from repae_jax.cli import main
from repae_jax.interop.formats import FORMATS
from repae_jax.interop.sit import from_published_sit
from repae_jax.runs.checkpoints import restore_latest

LEARNS_SIGMA = dict(
    latent_size=4, patch_size=2, hidden_size=16, depth=2, num_heads=2, num_classes=10
)


def published_sit():
    """A SiT of its authors' kind: the last layer gives velocity and variance, time runs upwards."""
    module = torch_sit.SiT(**LEARNS_SIGMA, latent_channels=2, encoder_depth=1)
    module.final_layer = torch_sit.FinalLayer(16, 2 * 2 * 4)
    parity.randomise(module)
    del module.bn
    return module.eval()


def test_a_published_sit_gives_its_velocity():
    module = published_sit()
    tensors = parity.state_of(module)
    model = sit_of(**LEARNS_SIGMA, latent_channels=2, encoder_depth=1, teacher_dims=())
    variables = load_sit(from_published_sit(tensors), model, statistics=False)
    x = parity.normal(5, 4, 4, 2, seed=1)
    time = np.array([0.0, 0.2, 0.5, 0.9, 1.0], np.float32)
    labels = np.array([0, 3, 9, 10, 1], np.int32)
    velocity, *_ = model.apply(variables, x, time, {"label": labels})
    with torch.no_grad():
        both, *_ = module(parity.to_nchw(x), torch.tensor(1 - time), torch.tensor(labels))
    # theirs goes from noise at 0 to the image at 1, ours the other way
    parity.assert_close(velocity, -parity.to_nhwc(both[:, :2]), "velocity", 1e-5)


@pytest.mark.parametrize("how", ["bare", "training"])
def test_a_published_sit_becomes_a_run(how, run, tmp_path, capsys):
    tensors = published_sit().state_dict()
    content = dict(tensors)
    if how == "training":  # as the SiT's authors' trainer saves it
        args = argparse.Namespace(model="SiT-S/2", path_type="Linear", prediction="velocity")
        moments = {"state": {}, "param_groups": []}
        content = {"model": tensors, "ema": tensors, "opt": moments, "args": args}
    torch.save(content, tmp_path / "x.pt")
    found = inspect(tmp_path / "x.pt", capsys)
    assert found["format"] == FORMATS["sit" if how == "bare" else "repa"]
    words = ["--config", f"{TINY}:vanilla", "--config.backbone.hidden_size=16", "--quiet"]
    words.append(f"--config.tokenizer.weights={run}")
    words += ["--config.data.resolution=16", "--config.condition.drop=0.1"]
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "run"), *words]) == 0
    said = capsys.readouterr().out
    assert "taken for a SiT, whose last layer's second half is left out; a DiT has the same" in said
    assert ("the moments of its optimizer" in said) == (how == "training")
    state = restore_latest(tmp_path / "run")
    model = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert_same_trees(
        state["params"]["backbone"]["final_layer"]["linear"]["kernel"],
        from_published_sit(model)["final_layer.linear.weight"].T,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "noise"}, "'prediction' is 'noise': only a SiT that predicts the velocity"),
        ({"prediction": None}, "(a DiT predicts the noise)"),
        ({"path_type": "VP"}, "'path_type' is 'VP': use Linear, GVP"),
    ],
)
def test_what_predicts_something_else_is_refused(changes, message, tmp_path, capsys):
    tensors = published_sit().state_dict()
    args = {"model": "DiT-S/2", "prediction": "velocity", "path_type": "Linear"} | changes
    content = {"model": tensors, "ema": tensors, "opt": {}, "args": argparse.Namespace(**args)}
    torch.save(content, tmp_path / "x.pt")
    assert message in refused(["inspect", tmp_path / "x.pt"], capsys)
