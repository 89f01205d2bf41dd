"""Up-sampling and convolution in one against torch's two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, quick_jit, to_nchw, to_nhwc

from repae_jax.models.convolution import conv
from repae_jax.models.upsample import UpsampleConv
from repae_jax.parallel.flops import count_flops


@pytest.mark.parametrize("size", [(5, 3), (1, 4)])
def test_values_and_gradients_are_torchs(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 4)).astype(np.float32)
    layer = UpsampleConv(4, 6)
    variables = layer.init(jax.random.key(0), x)

    def loss(variables, x):
        y = layer.apply(variables, x)
        return jnp.sin(y).sum(), y

    (_, y), (grads, dx) = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    inputs = to_nchw(x).requires_grad_()
    theirs = torch.nn.Conv2d(4, 6, 3, padding=1)
    params = variables["params"]
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.array(params["kernel"].transpose(3, 2, 0, 1))))
        theirs.bias.copy_(torch.tensor(np.array(params["bias"])))
    z = theirs(torch.nn.functional.interpolate(inputs, scale_factor=2.0, mode="nearest"))
    z.sin().sum().backward()

    assert_close(y, to_nhwc(z), "values", 1e-5)
    assert_close(dx, to_nhwc(inputs.grad), "inputs", 1e-5)
    ours = grads["params"]["kernel"].transpose(3, 2, 0, 1)
    assert_close(ours, theirs.weight.grad, "kernel", 1e-5)
    assert_close(grads["params"]["bias"], theirs.bias.grad, "bias", 1e-5)


def test_it_starts_as_the_convolution_does():
    x = jnp.ones((1, 8, 8, 4))
    ours, convolution = UpsampleConv(4, 6), conv(4, 6, 3)
    key = jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, x), convolution.init(key, x))


def test_it_costs_four_ninths():
    x = jnp.ones((1, 64, 64, 8))
    up = UpsampleConv(8, 8)
    plain = conv(8, 8, 3)
    large = jnp.ones((1, 128, 128, 8))
    ours = count_flops(up.apply, jax.eval_shape(up.init, jax.random.key(0), x), x)
    theirs = count_flops(plain.apply, jax.eval_shape(plain.init, jax.random.key(0), large), large)
    # one row and one column more, and the kernel's taps, added up
    assert 4 / 9 < ours / theirs < 1.04 * 4 / 9


def test_it_computes_in_its_type():
    x = jnp.ones((1, 4, 4, 4))
    layer = UpsampleConv(4, 4, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    y, pull = jax.vjp(layer.apply, variables, x)
    assert y.dtype == jnp.bfloat16
    grads, dx = pull(y)
    assert dx.dtype == grads["params"]["kernel"].dtype == jnp.float32
