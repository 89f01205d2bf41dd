"""GroupNorm with its own backward pass, beside torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, normal, to_nchw, to_nhwc

from repae_jax.models.group_norm import GroupNorm

BATCH, SIDE, CHANNELS, GROUPS = 2, 12, 12, 3
SHAPE = (BATCH, SIDE, SIDE, CHANNELS)


def parameters():
    scale = 1.0 + 0.3 * normal(CHANNELS, seed=1)
    return {"scale": scale, "bias": normal(CHANNELS, seed=2)}


def inputs(mean=0.0, std=1.0):
    """Channels with means and deviations of their own, about `mean` and times `std`."""
    means, stds = normal(CHANNELS, seed=3), 1.0 + 0.5 * np.abs(normal(CHANNELS, seed=4))
    x = mean + std * (means + stds * normal(*SHAPE, seed=5))
    return x.astype(np.float32), normal(*SHAPE, seed=6)


def ours(x, weights, *, activate, dtype=jnp.float32):
    """Output, and the gradients of its product with `weights` for x, scale and bias."""
    norm = GroupNorm(GROUPS, dtype, activate=activate)

    def weighted(x, params):
        out = norm.apply({"params": params}, x)
        return (out.astype(jnp.float32) * weights).sum(), out

    gradient = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
    (dx, dparams), out = gradient(x.astype(dtype), parameters())
    assert (out.dtype, dx.dtype, dparams["scale"].dtype) == (dtype, dtype, jnp.float32)
    return {"out": out, "x": dx, **dparams}


def theirs(x, weights, *, activate, dtype=torch.float64):
    x = to_nchw(x).to(dtype).requires_grad_()
    given = parameters()
    scale, bias = (torch.tensor(given[n], dtype=dtype, requires_grad=True) for n in given)
    out = torch.nn.functional.group_norm(x, GROUPS, scale, bias, eps=1e-6)
    out = torch.nn.functional.silu(out) if activate else out
    (out * to_nchw(weights)).sum().backward()
    return {"out": to_nhwc(out), "x": to_nhwc(x.grad), "scale": scale.grad, "bias": bias.grad}


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (30.0, 1.0), (-0.5, 1e-3)])
def test_values_and_gradients_are_torchs(activate, mean, std):
    x, weights = inputs(mean, std)
    expected = theirs(x, weights, activate=activate)
    for name, value in ours(x, weights, activate=activate).items():
        assert_close(value, expected[name], name)


def test_a_corner_unlike_all_else_costs_no_accuracy():
    """Moments are taken about the corner's value."""
    x, weights = inputs()
    x[:, 0, 0] += 30.0
    expected = theirs(x, weights, activate=True)
    for name, value in ours(x, weights, activate=True).items():
        assert_close(value, expected[name], name)


def test_a_constant_image_has_finite_gradients():
    x, weights = np.full(SHAPE, 3.0, np.float32), inputs()[1]
    found = ours(x, weights, activate=True)
    assert all(np.isfinite(value).all() for value in found.values())


def test_in_bfloat16_only_inputs_and_outputs_are_rounded():
    x, weights = inputs()
    x = np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    weights = np.asarray(jnp.asarray(weights, jnp.bfloat16).astype(jnp.float32))
    exact = ours(x, weights, activate=True)
    rounded = ours(x, weights, activate=True, dtype=jnp.bfloat16)
    for name in ("out", "x"):
        error = np.abs(rounded[name].astype(jnp.float32) - exact[name])
        assert (error <= 2.0**-8 * np.abs(exact[name]) + 1e-4).all(), name
    for name in ("scale", "bias"):
        assert_close(rounded[name], exact[name], name)
