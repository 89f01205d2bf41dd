"""Whole generators in torch: the images of our sampler, and the same arrays as a run again."""

import json

import jax
import numpy as np
import pytest
import torch_pipelines
from torch_pipelines import CASES, LABELS, PROMPTS, STEP, distance, our_images, torch_images

from repae_jax.cli import main
from repae_jax.interop.detect_format import detect
from repae_jax.runs.open_run import open_on_host

GUIDED = dict(guidance_scale=2.5, guidance_high=0.8)


def convert(*words):
    return main(["convert", *map(str, words), "--quiet"])


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory):
    """(the case, its run, its folder)."""
    folder = tmp_path_factory.mktemp("pipeline")
    torch_pipelines.save_random_run(folder / "run", CASES[request.param]())
    assert convert(folder / "run", folder / "pipe", "--to", "pipeline") == 0
    return request.param, folder / "run", folder / "pipe"


def sampler_of(case):
    """An ODE or an SDE in turn, guided in an interval; a DiT's chain or its deterministic steps.

    Each family has cases of both.
    """
    number = list(CASES).index(case) % 2
    if case == "sit without null class":
        return dict(method="heun", steps=4)
    if case.startswith("dit") and not case.startswith("ditdh"):
        return [dict(method="ddim", steps=4, **GUIDED), dict(method="ddpm", steps=4, **GUIDED)][
            number
        ]
    return [
        dict(method="heun", steps=4, **GUIDED),
        dict(method="euler-maruyama", steps=4, guidance_scale=2.5, guidance_low=0.3),
    ][number]


def test_each_family_has_an_ode_and_an_sde():
    methods = {}
    for case in CASES:
        family = case.split()[0]
        methods.setdefault(family, set()).add(sampler_of(case)["method"])
    assert [family for family, found in methods.items() if len(found) < 2] == []


@pytest.mark.slow  # compiles a sampler a case
def test_images_are_those_of_our_sampler(made):
    case, run, folder = made
    pipe = torch_pipelines.open_in_torch(folder)
    asked = PROMPTS if pipe.text_encoder is not None else LABELS
    if case == "sit without null class":
        asked = LABELS[:-1]
    ours, given = our_images(run, asked, **sampler_of(case))
    assert ours.std() > 5  # no plain color
    assert distance(torch_images(pipe, asked, **given), ours) <= 1
    other = {**given, "latents": given["latents"].flip(0)}
    assert distance(torch_images(pipe, asked, **other), ours) > 1


def networks(state):
    """The arrays of a state that a folder holds."""
    averaged = {name: part for name, part in state.ema.items() if name != "tokenizer"}
    heads = [name for name in averaged["params"] if name.startswith("projectors_")]
    params = {name: part for name, part in averaged["params"].items() if name not in heads}
    text = [
        state.frozen[name] for name in ("text_encoder", "null_condition") if name in state.frozen
    ]
    return [{**averaged, "params": params}, state.params["tokenizer"], *text]


@pytest.mark.slow
def test_a_folder_becomes_the_run_again(made, tmp_path):
    _, run, folder = made
    assert detect(folder).format == "pipeline"
    assert convert(folder, tmp_path / "back") == 0
    before, after = open_on_host(run), open_on_host(tmp_path / "back")
    assert int(after.state.step) == STEP
    for one, other in zip(*map(networks, (before.state, after.state)), strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert convert(tmp_path / "back", tmp_path / "again", "--to", "pipeline") == 0
    for part in ("transformer", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            assert (tmp_path / "again" / part / file.name).read_bytes() == file.read_bytes()
    index = json.loads((folder / "model_index.json").read_text())
    assert json.loads((tmp_path / "again" / "model_index.json").read_text()) == index
