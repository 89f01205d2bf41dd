"""VF loss: values and gradients of VA-VAE's own code, and of PyTorch's functions."""

import os
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
from checkouts import module_of
from torch.nn import functional

from repae_jax.objectives.foundation import foundation_loss

SHAPE = (2, 6, 5)
MARGINS = [(0.0, 0.0), (0.25, 0.5)]
MARGIN_FROM_KINKS = 1e-3


def ours(margins, z, f):
    return foundation_loss(z, f, distance_margin=margins[0], cosine_margin=margins[1])


def theirs(margins, z, f):
    """VF loss by PyTorch's own functions."""
    directions = [functional.normalize(x, dim=-1) for x in (z, f)]
    matrices = [x @ x.transpose(1, 2) for x in directions]
    distance = functional.relu((matrices[0] - matrices[1]).abs() - margins[0]).mean()
    cosine = functional.cosine_similarity(z, f, dim=-1)
    return distance, functional.relu(1 - margins[1] - cosine).mean()


def inputs():
    """Directions that are partly alike, so that both margins clip some pairs and leave others."""
    f, noise = parity.normal(2, *SHAPE, seed=0)
    return f + noise * np.linspace(0.1, 2.0, SHAPE[1], dtype=np.float32)[:, None], 3 * f


@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("part", [0, 1])
def test_values_and_gradients_equal_torch(margins, part):
    z, f = inputs()
    leaves = [torch.tensor(x, requires_grad=True) for x in (z, f)]
    expected = theirs(margins, *leaves)[part]
    expected.backward()

    value, gradients = jax.value_and_grad(lambda z, f: ours(margins, z, f)[part], (0, 1))(z, f)
    parity.assert_close(value, expected, "value", 1e-5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        parity.assert_close(gradient, leaf.grad, "gradient", 1e-4)


def test_the_inputs_keep_both_sides_of_every_margin_and_away_from_it():
    z, f = (torch.tensor(x, dtype=torch.float64) for x in inputs())
    directions = [functional.normalize(x, dim=-1) for x in (z, f)]
    matrices = [x @ x.transpose(1, 2) for x in directions]
    off = ~torch.eye(SHAPE[1], dtype=bool).expand(SHAPE[0], -1, -1)
    difference = (matrices[0] - matrices[1]).abs()[off]
    for values in (difference - 0.25, 0.5 - functional.cosine_similarity(z, f, dim=-1)):
        assert (values > MARGIN_FROM_KINKS).any()
        assert (values < -MARGIN_FROM_KINKS).any()
        assert values.abs().min() > MARGIN_FROM_KINKS
    assert difference.min() > MARGIN_FROM_KINKS  # the absolute value's kink


def test_equal_directions_cost_nothing_and_their_scale_does_not_matter():
    _, f = inputs()
    np.testing.assert_allclose(ours((0.0, 0.0), 7 * f, f), 0.0, atol=1e-6)


def test_a_zero_latent_has_a_finite_loss():
    z, f = inputs()
    z[0, 0] = 0.0
    expected = theirs((0.0, 0.0), torch.tensor(z), torch.tensor(f))
    parity.assert_close(jnp.stack(ours((0.0, 0.0), z, f)), torch.stack(expected), "values", 1e-5)


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4, 8\).*\(2, 16, 8\).*same number of positions"):
        ours((0.0, 0.0), jnp.zeros((2, 4, 8)), jnp.zeros((2, 16, 8)))


@pytest.mark.skipif(
    "LIGHTNINGDIT_ORIGINAL" not in os.environ,
    reason="set LIGHTNINGDIT_ORIGINAL to a checkout of hustvl/LightningDiT (it needs einops)",
)
@pytest.mark.parametrize("margins", MARGINS)
def test_values_and_gradients_are_those_of_vavaes_code(margins, monkeypatch):
    """Its whole loss of the generator with the pixels' part 0 and without a discriminator."""
    perceptual = types.ModuleType("taming.modules.losses.vqperceptual")
    network = type("Network", (torch.nn.Module,), {"forward": lambda self, *x: x[0].sum() * 0})
    perceptual.LPIPS = network
    perceptual.NLayerDiscriminator = lambda **kwargs: network()
    perceptual.weights_init = lambda module: None
    perceptual.hinge_d_loss = None
    perceptual.adopt_weight = lambda weight, step, threshold: 0.0
    perceptual.torch, perceptual.nn = torch, torch.nn
    for name in ("taming", "taming.modules", "taming.modules.losses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, perceptual.__name__, perceptual)
    file = pathlib.Path(os.environ["LIGHTNINGDIT_ORIGINAL"]) / "vavae/ldm/modules/losses"
    module = module_of(file / "contperceptual.py", "vavae_loss")
    loss = module.LPIPSWithDiscriminator(
        0, kl_weight=0.0, disc_factor=0.0, perceptual_weight=0.0, vf_weight=1.0,
        distmat_margin=margins[0], cos_margin=margins[1],
    )  # fmt: skip
    z, f = inputs()
    leaf = torch.tensor(z.transpose(0, 2, 1).reshape(2, 5, 2, 3), requires_grad=True)
    feature = torch.tensor(f.transpose(0, 2, 1).reshape(2, 5, 2, 3))
    posterior = types.SimpleNamespace(kl=lambda: torch.zeros(2))
    pixels = torch.zeros(2, 3, 4, 4)
    total, _ = loss(pixels, pixels, posterior, 0, 0, z=leaf, aux_feature=feature)
    total.backward()

    value, gradient = jax.value_and_grad(lambda z: sum(ours(margins, z, f)))(z)
    parity.assert_close(value, total, "value", 1e-5)
    expected = leaf.grad.reshape(2, 5, 6).transpose(1, 2)
    parity.assert_close(gradient, expected, "gradient", 1e-4)
