import copy

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import pytest
import torch
from exported import export_discriminator
from torch_patchgan import TorchDiscriminator

from repae_jax.errors import UserError
from repae_jax.interop.discriminator import load_discriminator
from repae_jax.models.discriminator import PatchDiscriminator

FILTERS, SIZE = 4, 40


@pytest.fixture(params=[2, 3])
def pair(request):
    torch.manual_seed(0)
    reference = TorchDiscriminator(request.param, FILTERS)
    model = PatchDiscriminator(num_layers=request.param, filters=FILTERS)
    tensors = {name: t.numpy().copy() for name, t in reference.state_dict().items()}
    return reference, model, load_discriminator(tensors, model)


def images(seed):
    return np.random.default_rng(seed).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)


def safe_images(reference):
    """Images that keep a margin from the reference's kinks, in train mode."""

    def distances_of(x):
        def distances(dtype):
            module = copy.deepcopy(reference).train().to(dtype)
            with kinks.recorded(module) as found:
                module(torch.tensor(x, dtype=dtype))
            return found

        return distances

    return kinks.first_safe(map(images, range(100)), distances_of)


def initialised(model):
    images = jnp.zeros((1, 24, 24, 3))
    return jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0, impl="rbg"))


def assert_close(actual, expected, what):
    expected = np.asarray(expected.detach())
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error <= 1e-4, f"{what}: {error}"


def test_values_and_gradients_equal_torch(pair):
    reference, model, variables = pair
    x = safe_images(reference)
    x_torch = torch.tensor(x, requires_grad=True)
    expected = reference.train()(x_torch)
    weight = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()

    def weighted(params, x):
        state = {**variables, "params": params}
        logits, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
        return (logits * weight).sum(), logits

    gradient = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), logits = gradient(variables["params"], x)
    assert_close(logits, expected, "logits")
    assert_close(by_x, x_torch.grad, "gradient by the images")
    by_name = export_discriminator({**variables, "params": by_params}, model)
    for name, parameter in reference.named_parameters():
        assert_close(by_name[name], parameter.grad, name)


def test_running_statistics_equal_torch_after_three_calls(pair):
    reference, model, variables = pair
    reference.train()
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for seed in range(3):
        reference(torch.tensor(images(seed)))
        variables = {**variables, **step(variables, images(seed))}
    tensors = export_discriminator(variables, model)
    statistics = [name for name in tensors if "running" in name]
    assert len(statistics) == 2 * model.num_layers
    for name in statistics:
        assert_close(tensors[name], reference.state_dict()[name], name)
    expected = reference.eval()(torch.tensor(images(4)))
    assert_close(model.apply(variables, images(4), train=False), expected, "evaluation logits")


def test_torch_loads_what_is_exported(pair):
    reference, model, variables = pair
    tensors = {n: torch.tensor(a) for n, a in export_discriminator(variables, model).items()}
    other = TorchDiscriminator(model.num_layers, FILTERS)
    other.load_state_dict(tensors, strict=True)
    x = torch.tensor(images(0))
    assert torch.equal(other.eval()(x), reference.eval()(x))


def test_initialisation():
    model = PatchDiscriminator()
    params = initialised(model)["params"]
    assert "bias" not in params["conv_1"]
    assert "bias" not in params["conv_3"]
    for i in (1, 2, 3):
        assert abs(params[f"conv_{i}"]["kernel"].std() - 0.02) < 1e-3
        assert abs(params[f"norm_{i}"]["scale"].mean() - 1.0) < 0.01
        assert abs(params[f"norm_{i}"]["scale"].std() - 0.02) < 0.005
        assert not params[f"norm_{i}"]["bias"].any()
    bound = 1.0 / np.sqrt(3 * 4 * 4)  # torch's for a bias
    assert 0.5 * bound < np.abs(params["conv_0"]["bias"]).max() <= bound


def test_bfloat16_keeps_logits_and_statistics_in_float32(pair):
    _, model, variables = pair
    exact = model.apply(variables, images(0), train=False)
    half = model.clone(dtype=jnp.bfloat16)
    logits, new = half.apply(variables, images(0), train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    logits = half.apply(variables, images(0), train=False)
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_the_smallest_image_gives_one_logit_and_a_smaller_one_an_error():
    model = PatchDiscriminator(filters=FILTERS)
    variables = initialised(model)
    assert model.apply(variables, jnp.zeros((1, 24, 31, 3)), train=False).shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match=r"23 x 64.*24"):
        model.apply(variables, jnp.zeros((1, 23, 64, 3)), train=False)
