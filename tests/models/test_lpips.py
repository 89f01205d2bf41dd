import copy

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import pytest
import torch
from torch import nn

from repae_jax.interop.lpips import load_lpips
from repae_jax.models import lpips
from repae_jax.models.lpips import LPIPS

WIDTHS = (4, 6, 8, 10, 12)
DEPTHS = (2, 2, 3, 3, 3)


class TorchLPIPS(nn.Module):
    """VGG16's features in torchvision's order, and LPIPS on top, written out."""

    def __init__(self, rescale):
        super().__init__()
        layers, channels, self.taps = [], 3, []
        for block, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
            if block:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([nn.Parameter(torch.rand(1, w, 1, 1)) for w in WIDTHS])
        self.rescale = rescale
        for name, parameter in self.features.named_parameters():
            fan_in = parameter[0].numel() if name.endswith("weight") else 25
            parameter.data.normal_(0.0, (2.0 / fan_in) ** 0.5)

    def tensors(self):
        named = {f"features.{n}": t for n, t in self.features.state_dict().items()}
        named |= {f"lin{k}.model.1.weight": t.detach() for k, t in enumerate(self.heads)}
        return {name: t.numpy() for name, t in named.items()}

    def unit_features(self, x):
        x = x.permute(0, 3, 1, 2)
        x = 2 * x - 1 if self.rescale else x
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        x = (x - shift) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self.taps:
                # vector_norm has the gradient 0 at 0, where the square root's is not finite
                yield x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)

    def forward(self, a, b):
        pairs = zip(self.unit_features(a), self.unit_features(b), self.heads, strict=True)
        return sum(nn.functional.conv2d((f - g) ** 2, w).mean((1, 2, 3)) for f, g, w in pairs)


def build(rescale=False, dead_tap=False):
    torch.manual_seed(0)
    reference = TorchLPIPS(rescale)
    if dead_tap:  # the last ReLU never fires
        reference.features[reference.taps[-1] - 1].bias.data.fill_(-1e3)
    model = LPIPS(rescale_inputs=rescale, widths=WIDTHS)
    return reference, model, load_lpips(reference.tensors(), model)


def images(seed, size=32):
    return np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def safe_images(reference):
    """Two batches of images that keep a margin from the reference's kinks."""

    def distances_of(pair):
        def distances(dtype):
            module = copy.deepcopy(reference).to(dtype)
            with kinks.recorded(module.features) as found:
                module(*(torch.tensor(x, dtype=dtype) for x in pair))
            return found

        return distances

    pairs = ((images(seed), images(seed + 1)) for seed in range(0, 200, 2))
    return kinks.first_safe(pairs, distances_of)


def assert_close(actual, expected):
    expected = np.asarray(expected)
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def gradients(model, variables, a, b):
    def weighted(a, b):
        distance = model.apply(variables, a, b)
        return (distance * np.array([1.0, -2.0], np.float32)).sum(), distance

    return jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(a, b)


@pytest.mark.parametrize(("rescale", "dead_tap"), [(False, False), (True, True)])
def test_values_and_gradients_equal_torch(rescale, dead_tap):
    reference, model, variables = build(rescale, dead_tap)
    pair = safe_images(reference)
    a, b = (torch.tensor(x, requires_grad=True) for x in pair)
    expected = reference(a, b)
    (expected * torch.tensor([1.0, -2.0])).sum().backward()
    (by_a, by_b), distance = gradients(model, variables, *pair)
    assert distance.shape == (2,)
    assert_close(distance, expected.detach())
    assert_close(by_a, a.grad)
    assert_close(by_b, b.grad)


def test_gradients_by_the_weights_equal_torch():
    reference, model, variables = build()
    a, b = safe_images(reference)
    reference(torch.tensor(a), torch.tensor(b)).sum().backward()
    for tensor in reference.parameters():
        tensor.data = tensor.grad
    expected = jax.tree.leaves_with_path(load_lpips(reference.tensors(), model))
    actual = jax.jit(jax.grad(lambda v: model.apply(v, a, b).sum()))(variables)
    actual = dict(jax.tree.leaves_with_path(actual))
    assert len(actual) == len(expected) == 2 * 13 + 5
    for path, gradient in expected:
        assert_close(actual[path], gradient)


def test_of_equal_pixels_the_first_takes_the_poolings_gradient():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 7, 10, 4)).astype(np.float32)  # many ties; an odd side
    weights = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    leaf = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = nn.functional.max_pool2d(leaf, 2)
    (expected * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    pooled, backward = jax.vjp(lpips._max_pool, x)
    assert (pooled == expected.detach().numpy().transpose(0, 2, 3, 1)).all()
    assert (backward(weights)[0] == leaf.grad.numpy().transpose(0, 2, 3, 1)).all()


def test_a_zero_feature_has_gradient_zero():
    _, model, variables = build()
    rng = np.random.default_rng(0)
    taps = tuple(rng.random((1, 2, 2, width), np.float32) for width in WIDTHS)
    zeros = jax.tree.map(np.zeros_like, taps)

    @jax.jit
    @jax.value_and_grad
    def compare(a, b):
        return model.apply(variables, a, b, method="compare").sum()

    distance, gradient = compare(zeros, taps)
    assert distance > 0
    for leaf in jax.tree.leaves(gradient):
        assert not leaf.any()


def test_constant_images_give_finite_gradients():
    _, model, variables = build(dead_tap=True)
    (by_a, by_b), distance = gradients(
        model, variables, np.full((2, 16, 16, 3), 1.0), images(1, 16)
    )
    assert np.isfinite(distance).all()
    assert np.isfinite(by_a).all()
    assert np.isfinite(by_b).all()


def test_features_of_one_image_can_be_kept():
    _, model, variables = build()
    features = jax.jit(lambda x: model.apply(variables, x, method="features"))
    kept = features(images(0))
    assert [tap.shape for tap in kept] == [
        (2, 32 >> k, 32 >> k, width) for k, width in enumerate(WIDTHS)
    ]
    distance = model.apply(variables, kept, features(images(1)), method="compare")
    expected = jax.jit(model.apply)(variables, images(0), images(1))
    np.testing.assert_allclose(distance, expected, rtol=1e-6)


def test_untrained_it_is_a_distance():
    model = LPIPS(rescale_inputs=False, widths=WIDTHS)
    a, b = images(0), images(1)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), a, b)
    distance = jax.jit(lambda a, b: model.apply(variables, a, b))
    assert (np.asarray(distance(a, b)) > 1e-3).all()
    np.testing.assert_allclose(distance(a, a), [0.0, 0.0], atol=1e-12)


def test_bfloat16_compares_in_float32():
    _, model, variables = build()
    exact = jax.jit(model.apply)(variables, images(0), images(1))
    half = model.clone(dtype=jnp.bfloat16)
    taps = jax.eval_shape(lambda x: half.apply(variables, x, method="features"), images(0))
    assert taps[0].dtype == jnp.bfloat16
    distance = jax.jit(half.apply)(variables, images(0), images(1))
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, exact, rtol=0.05)
