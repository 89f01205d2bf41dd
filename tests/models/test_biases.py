"""Layers with biases whose gradients are summed in float32: flax's layers otherwise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repae_jax.models.convolution import conv, torch_uniform
from repae_jax.models.layers import Dense

KEY = jax.random.key(0)
CASES = {
    "convolution": (
        conv(3, 5, 3),
        nn.Conv(5, (3, 3), kernel_init=torch_uniform(27), bias_init=torch_uniform(27)),
        (2, 8, 8, 3),
    ),
    "strided convolution without bias": (
        conv(3, 5, 4, stride=2, padding=((1, 1), (1, 1)), bias=False),
        nn.Conv(5, (4, 4), 2, ((1, 1), (1, 1)), use_bias=False, kernel_init=torch_uniform(48)),
        (2, 8, 8, 3),
    ),
    "linear layer": (Dense(5), nn.Dense(5), (2, 7, 3)),
    "linear layer without bias": (Dense(5, biased=False), nn.Dense(5, use_bias=False), (2, 7, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_values_and_gradients_are_flaxs(case):
    ours, flaxs, shape = CASES[case]
    x = jax.random.normal(KEY, shape)

    def all_of(layer):
        variables = layer.init(KEY, x)
        bias = variables["params"].get("bias")
        if bias is not None:
            variables["params"]["bias"] = bias + jnp.arange(5.0)
        gradient = jax.grad(lambda v, x: jnp.sin(layer.apply(v, x)).sum(), (0, 1))
        return variables, layer.apply(variables, x), gradient(variables, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        all_of(ours),
        all_of(flaxs),
    )


@pytest.mark.parametrize("layer", [conv(1, 1, 1, dtype=jnp.bfloat16), Dense(1, dtype=jnp.bfloat16)])
def test_many_small_gradients_of_a_bias_add_up_in_bfloat16(layer):
    x = jnp.zeros((2, 64, 64, 1), jnp.bfloat16)
    variables = layer.init(KEY, x)
    gradient = jax.grad(lambda v: layer.apply(v, x).astype(jnp.float32).sum() / 1024)(variables)
    assert gradient["params"]["bias"].dtype == jnp.float32
    assert gradient["params"]["bias"] == x.size / 1024
