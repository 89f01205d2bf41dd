"""Projection heads as rows of a table: one that needs the grid, and the options of each."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
import torch
from parity import assert_close, normal, quick_jit

from repae_jax.config import projector
from repae_jax.config.modules import build_projector
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.family import Family
from repae_jax.models.projectors import PROJECTORS
from repae_jax.runs.build import build_models


class Head(nn.Module):
    features: int
    grid: int
    kernel: int

    @nn.compact
    def __call__(self, tokens):
        x = tokens.reshape(len(tokens), self.grid, self.grid, -1)
        x = nn.Conv(self.features, (self.kernel, self.kernel))(x)
        return x.reshape(len(tokens), -1, self.features)


@dataclasses.dataclass(frozen=True)
class Convolution:
    kernel: int = 3

    def module(self, features, grid, dtype):
        return Head(features, grid, self.kernel)


def test_a_head_may_see_neighbours(monkeypatch):
    monkeypatch.setitem(PROJECTORS, "own", Family(Convolution, {"kernel": Convolution.kernel}))
    config = tiny.get_config()
    config.projector = projector("own", kernel=5)
    validate(config)
    models = build_models(config)
    inputs = blank_inputs(models.backbone)
    variables = quick_jit(models.backbone.init)(jax.random.key(0), *inputs)
    params = variables["params"]
    assert params["projectors_0"]["Conv_0"]["kernel"].shape == (5, 5, 16, 8)
    output = quick_jit(models.backbone.apply)(variables, *inputs)
    assert output.projections[0].shape == (1, 16, 8)
    # of the convolution of the tokens as a picture of 4 x 4
    head = models.backbone.projector.module(8, 4, np.float32)
    expected = head.apply({"params": params["projectors_0"]}, output.tokens)
    np.testing.assert_allclose(output.projections[0], expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected) > 0.01


def test_options_are_those_of_the_family():
    config = tiny.get_config()
    assert build_projector(config) == PROJECTORS["mlp"].build(hidden=8)
    config.projector.kernel = 3
    with pytest.raises(UserError, match="family is 'mlp', but 'kernel' is a key of another family"):
        validate(config)
    with pytest.raises(UserError, match="no projector of the family 'other': use mlp"):
        projector("other")
    config = tiny.get_config()
    config.projector.family = "other"
    with pytest.raises(UserError, match=r"projector.family is 'other': it must be 'mlp' or 'conv'"):
        validate(config)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_convolution_is_torchs(kernel):
    grid, dim, features = 4, 8, 6
    head = PROJECTORS["conv"].build(kernel=kernel).module(features, grid, np.float32)
    theirs = torch.nn.Conv2d(dim, features, kernel, padding=kernel // 2)
    weights = {
        "kernel": theirs.weight.detach().numpy().transpose(2, 3, 1, 0),
        "bias": theirs.bias.detach().numpy(),
    }
    tokens = normal(2, grid * grid, dim, seed=0)
    image = torch.tensor(tokens).transpose(1, 2).reshape(2, dim, grid, grid)
    expected = theirs(image).flatten(2).transpose(1, 2)
    found = head.apply({"params": {"projection_layer": weights}}, tokens)
    assert_close(found, expected, "projection")
    # PyTorch's own initialization, not the transformer's
    fresh = head.init(jax.random.key(0), tokens)["params"]["projection_layer"]["kernel"]
    bound = (dim * kernel * kernel) ** -0.5
    assert 0.8 * bound < np.abs(fresh).max() <= bound


@pytest.mark.parametrize("kernel", [0, 2])
def test_an_even_kernel_is_named(kernel):
    config = tiny.get_config()
    config.projector = projector("conv", kernel=kernel)
    with pytest.raises(UserError, match=rf"config.projector.kernel is {kernel}"):
        validate(config)
