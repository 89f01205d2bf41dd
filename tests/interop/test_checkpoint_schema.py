"""The original's checkpoints with arguments and parts of other types: one line, no run is made."""

import argparse

import pytest
import torch
from saved import saved_content
from weight_files import refused


def without_ours(args):
    """The arguments as the original has them."""
    args = vars(args).copy()
    del args["repae_jax"]
    return args | {"model": "SiT-B/2", "vae": "f8d4", "enc_type": "None"}


ARGUMENTS = {
    "seed": ("x", "argument seed is 'x'"),
    "batch_size": (float("nan"), "argument batch_size is nan"),
    "num_classes": ([[[1]]], "argument num_classes is [[[1]]]"),
    "qk_norm": (1, "argument qk_norm is 1: it must be a valid boolean"),
    "cfg_prob": ({}, "argument cfg_prob is {}"),
    "path_type": (True, "argument path_type is True"),
    "learning_rate": ("1e-4", "argument learning_rate is '1e-4'"),
    "model": ([], "argument model is []"),
    "vae": ({"x": 1}, "argument vae is {'x': 1}"),
    "enc_type": (-1, "argument enc_type is -1"),
    "max_train_steps": (10**400, "config.run.steps is a number of many digits: give at most"),
    "resolution": (-256, "config.data.resolution is -256: give at least 1"),
    "odd": (torch.ones(2), "its argument 'odd' is"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_other_types_are_named(name, checkpoint, tmp_path, capsys):
    value, message = ARGUMENTS[name]
    content = saved_content(checkpoint)
    content["args"] = argparse.Namespace(**without_ours(content["args"]) | {name: value})
    torch.save(content, tmp_path / "x.pt")
    line = refused(["convert", tmp_path / "x.pt", tmp_path / "run", "--quiet"], capsys)
    assert message in line
    assert len(line) < 600
    assert not (tmp_path / "run").exists()


def entry(content, key, value):
    content["opt"]["state"][1][key] = value


def group(content, key, value):
    content["opt"]["param_groups"][0][key] = value


def tensor(content, key, value):
    content[key][next(iter(content[key]))] = value


PARTS = {
    "args": (lambda c: c.update(args=3), "its 'args' are 3, not arguments by name"),
    "args' names": (lambda c: c.update(args={1: 2}), "its 'args' are {1: 2}"),
    "steps": (lambda c: c.update(steps="x"), "steps is 'x': it must be a valid integer"),
    "steps below": (lambda c: c.update(steps=-1), "steps is -1: give at least 0"),
    "optimizer": (lambda c: c.update(opt={"state": {}}), "opt.param_groups is missing"),
    "group": (lambda c: group(c, "params", 3), "opt.param_groups[0].params is 3"),
    "betas": (lambda c: group(c, "betas", None), "opt.param_groups[0].betas is None"),
    "state": (lambda c: c["opt"].update(state=[]), "opt.state is []"),
    "moment": (lambda c: entry(c, "exp_avg", 3), "has 3 for its exp_avg, not a tensor"),
    "step": (lambda c: entry(c, "step", float("nan")), "has taken nan steps"),
    "step list": (lambda c: entry(c, "step", [1]), "has taken [1] steps"),
    "tensor": (lambda c: tensor(c, "model", 3), "model: tensor 'pos_embed' is missing"),
    "ema": (lambda c: tensor(c, "ema", None), "ema: tensor 'pos_embed' is missing"),
    "discriminator": (
        lambda c: tensor(c, "discriminator", {}),
        "discriminator: tensor 'main.0.weight' is missing",
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_other_kinds_are_named(part, checkpoint, tmp_path, capsys):
    change, message = PARTS[part]
    content = saved_content(checkpoint)
    change(content)
    torch.save(content, tmp_path / "x.pt")
    line = refused(["convert", tmp_path / "x.pt", tmp_path / "run", "--quiet"], capsys)
    assert message in line
    assert not (tmp_path / "run").exists()
