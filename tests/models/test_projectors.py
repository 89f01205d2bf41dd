"""Projection heads as rows of a table: one that needs the grid, and the options of each."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from parity import quick_jit

from repae_jax.config.defaults import projector
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
    monkeypatch.setitem(PROJECTORS, "conv", Family(Convolution, {"kernel": Convolution.kernel}))
    config = tiny.get_config()
    config.projector = projector("conv", kernel=5)
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
    with pytest.raises(UserError, match="no projector of the family 'conv': use mlp"):
        projector("conv")
    config = tiny.get_config()
    config.projector.family = "conv"
    with pytest.raises(UserError, match=r"projector.family is 'conv': it must be 'mlp'"):
        validate(config)
