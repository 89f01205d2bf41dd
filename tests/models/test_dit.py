"""DiT against a torch implementation, and against its authors' where it is checked out."""

import jax
import numpy as np
import parity
import pytest
import torch
from original_dit import ORIGINAL, REASON, original_dit
from torch_dit import make_dit

from repae_jax.interop import tables
from repae_jax.interop.sit import sit_rules
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.backbones.dit import PRESETS, DiT
from repae_jax.models.conditioning.class_label import ClassLabel

SMALL = dict(hidden_size=32, depth=2, num_heads=4)
SIDE, CHANNELS, CLASSES = 8, 3, 5
STEPS = np.array([0, 500, 999])
LABELS = np.array([4, CLASSES, 1])
needs_original = pytest.mark.skipif(not ORIGINAL, reason=REASON)


REFERENCES = {"torch": make_dit, "original": original_dit}
NAMES = ["torch", pytest.param("original", marks=needs_original)]


def ours(**fields):
    return DiT(
        latent_size=SIDE, latent_channels=CHANNELS, conditioner=ClassLabel(CLASSES),
        encoder_depth=1, **{**SMALL, "patch_size": 2, **fields},
    )  # fmt: skip


def reference(name):
    model = parity.randomise(
        REFERENCES[name](
            input_size=SIDE, patch_size=2, in_channels=CHANNELS, num_classes=CLASSES, **SMALL
        )
    )
    model.pos_embed.requires_grad = False
    return model


def load(model, module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *blank_inputs(module))
    return tables.load(sit_rules(2), parity.state_of(model), shapes)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_equal(name):
    theirs, model = reference(name), ours()
    variables = load(theirs, model)
    x = parity.normal(3, SIDE, SIDE, CHANNELS, seed=1)
    x_torch = parity.to_nchw(x).requires_grad_()
    expected = theirs(x_torch, torch.tensor(STEPS), torch.tensor(LABELS))
    weight = parity.normal(3, SIDE, SIDE, 2 * CHANNELS, seed=2)
    (expected * torch.tensor(weight.transpose(0, 3, 1, 2))).sum().backward()

    def weighted(params, x):
        t = np.float32(STEPS) / 1000
        output = model.apply({**variables, "params": params}, x, t, {"label": LABELS})
        both = np.concatenate if isinstance(x, np.ndarray) else jax.numpy.concatenate
        both = both([output.prediction, output.extra["variance"]], axis=-1)
        return (both * weight).sum(), both

    (by_params, by_x), both = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(
        variables["params"], x
    )
    parity.assert_close(both, parity.to_nhwc(expected), "noise and variance")
    parity.assert_close(by_x, parity.to_nhwc(x_torch.grad), "gradient by x")
    by_name = tables.to_theirs(sit_rules(2), tables.flatten({"params": by_params}))
    parity.assert_tensors_close(by_name, parity.gradients_of(theirs))


def test_the_network_sees_the_step():
    """Every step as a time, in float32, gives back the step."""
    t = np.arange(1000, dtype=np.float32) / np.float32(1000)
    np.testing.assert_array_equal(np.round(t * np.float32(1000)), np.arange(1000))
    model = ours()
    variables = load(reference("torch"), model)
    x = parity.normal(1, SIDE, SIDE, CHANNELS, seed=1)

    def tokens(t):
        return model.apply(variables, x, np.full(1, t, np.float32), {"label": LABELS[:1]}).tokens

    np.testing.assert_array_equal(tokens(0.5), tokens(0.5004))  # one step
    assert (tokens(0.5) != tokens(0.501)).any()
    np.testing.assert_array_equal(tokens(1.0), tokens(0.999))  # the last one


def test_without_a_learned_variance_there_is_none():
    model = ours(learn_sigma=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    x = np.zeros((3, SIDE, SIDE, CHANNELS), np.float32)
    output = jax.eval_shape(model.apply, variables, x, np.zeros(3, np.float32), {"label": LABELS})
    assert output.prediction.shape == x.shape
    assert output.extra == {}


def parameters(arch):
    """With the position table, which is a parameter of the original's."""
    model = DiT(latent_size=32, latent_channels=4, conditioner=ClassLabel(1000), **PRESETS[arch])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *blank_inputs(model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_published_size():
    assert parameters("DiT-XL/2") == 675_129_632


@needs_original
@pytest.mark.parametrize("arch", PRESETS)
def test_every_size_is_the_originals(arch):
    with torch.device("meta"):
        theirs = original_dit(input_size=32, in_channels=4, num_classes=1000, **PRESETS[arch])
    assert parameters(arch) == sum(p.numel() for p in theirs.parameters())
