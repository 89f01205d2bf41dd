"""`convolution.conv` against torch's layer, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, quick_jit, to_nchw, to_nhwc

from repae_jax.models.convolution import conv

CASES = {
    "3x3": dict(kernel=3),
    "1x1": dict(kernel=1),
    "strided, padded at one side": dict(kernel=3, stride=2, padding=((0, 1), (0, 1))),
    "4x4, strided": dict(kernel=4, stride=2, padding=((1, 1), (1, 1))),
    "4x4, without bias": dict(kernel=4, padding=((1, 1), (1, 1)), bias=False),
    "one channel": dict(kernel=4, features=1, padding=((1, 1), (1, 1))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_torchs(case):
    case = dict(case)
    features, kernel = case.pop("features", 5), case.pop("kernel")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 12, 9, 4)).astype(np.float32)
    layer = conv(4, features, kernel, **case)
    variables = layer.init(jax.random.key(0), x)

    def loss(variables, x):
        y = layer.apply(variables, x)
        return jnp.sin(y).sum(), y

    (_, y), (grads, dx) = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    weight = torch.tensor(np.array(variables["params"]["kernel"].transpose(3, 2, 0, 1)))
    bias = torch.tensor(np.array(variables["params"].get("bias", np.zeros(features, np.float32))))
    inputs = to_nchw(x)
    for tensor in (weight, bias, inputs):
        tensor.requires_grad_()
    (top, bottom), (left, right) = layer.padding
    padded = torch.nn.functional.pad(inputs, (left, right, top, bottom))
    theirs = torch.nn.functional.conv2d(padded, weight, bias, stride=layer.stride)
    theirs.sin().sum().backward()

    assert_close(y, to_nhwc(theirs), "values", 1e-5)
    assert_close(dx, to_nhwc(inputs.grad), "inputs", 1e-5)
    ours = grads["params"]["kernel"].transpose(3, 2, 0, 1)
    assert_close(ours, weight.grad, "kernel", 1e-5)
    if "bias" in grads["params"]:
        assert_close(grads["params"]["bias"], bias.grad, "bias", 1e-5)


def test_products_are_in_the_layers_type():
    layer = conv(4, 4, 3, dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 4))
    variables = layer.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == jnp.float32, variables))
    y, pull = jax.vjp(layer.apply, variables, x)
    grads, dx = pull(y)
    assert y.dtype == jnp.bfloat16
    assert dx.dtype == grads["params"]["kernel"].dtype == jnp.float32
