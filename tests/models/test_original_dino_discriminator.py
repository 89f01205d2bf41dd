"""The DINO discriminator, its augmentation and losses against RAE's own code."""

import copy
from unittest import mock

import jax
import kinks
import numpy as np
import original_rae_gan as original
import parity
import pytest
import torch

from repae_jax.interop.dino_discriminator import export_discriminator, load_discriminator
from repae_jax.interop.files import read_tensors
from repae_jax.interop.vit import load_vit
from repae_jax.models.dino_discriminator import DINO_CONFIGS, ENCODER, DinoDiscriminator
from repae_jax.objectives.adaptive import adaptive_weight
from repae_jax.objectives.adversarial import generator_loss, hinge_loss
from repae_jax.objectives.diffaug import diff_augment

# Few tokens at RAE's 224 pixels.
MODEL = DinoDiscriminator(patch_size=56, dim=12, depth=3, num_heads=2, blocks=(1, 3), kernel=9)

pytestmark = pytest.mark.skipif(not original.ROOT, reason=original.SKIP_REASON)


def images(seed, size=(2, 64, 64, 3)):
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


def safe_images(judge):
    """Images that keep a margin from the heads' kinks."""

    def distances_of(x):
        def distances(dtype):
            net = copy.deepcopy(judge).to(dtype).train()
            net.dino_proxy[0].to(dtype)
            as_it_is = mock.patch.object(torch.Tensor, "float", lambda x: x)  # float32 in its norm
            with kinks.recorded(net) as found, as_it_is:
                net.classify(parity.to_nchw(x).to(dtype))
            return found

        return distances

    return kinks.first_safe(map(images, range(100)), distances_of)


def test_presets_are_its_recipes():
    recipes = original.module("dinodisc").recipes
    for ours, theirs in (("dino-s8", "S_8"), ("dino-s16", "S_16"), ("dino-b16", "B_16")):
        model, recipe = DinoDiscriminator(**DINO_CONFIGS[ours]), recipes[theirs]
        assert tuple(block - 1 for block in model.blocks) == recipe["key_depths"]
        sizes = (model.patch_size, model.dim, model.depth, model.num_heads)
        keys = ("patch_size", "embed_dim", "depth", "num_heads")
        assert sizes == tuple(recipe[key] for key in keys)


@pytest.mark.slow
def test_values_gradients_and_power_iterations(tmp_path):
    model = MODEL
    judge = original.make_discriminator(tmp_path, model)
    dino = load_vit(read_tensors(tmp_path / "dino.pth"), model.encoder())["params"]
    loaded = load_discriminator({"disc": parity.state_of(judge)}, model)
    variables = {**loaded, "constants": {ENCODER: dino}}
    x = safe_images(judge)
    leaf = parity.to_nchw(x).requires_grad_()
    judge.train()
    expected, other = judge(leaf, parity.to_nchw(images(7)))
    weight = parity.normal(*expected.shape, seed=1)
    (expected * torch.tensor(weight)).sum().backward()

    def weighted(params, x):
        given = {**variables, "params": params}
        logits, new = model.apply(given, x, train=True, mutable=["batch_stats"])
        return (logits * weight).sum(), (logits, new)

    gradient = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), (logits, new) = gradient(variables["params"], x)
    parity.assert_close(logits, expected, "logits")
    parity.assert_close(by_x, parity.to_nhwc(leaf.grad), "gradient by the images")
    actual = export_discriminator({**variables, "params": by_params}, model)
    gradients = parity.gradients_of(judge)
    parity.assert_tensors_close(
        {name: actual[name] for name in gradients},
        gradients,
        vanishing=lambda name: (
            name.replace("bias", "weight_orig")
            if name.endswith((".0.0.bias", ".fn.0.bias"))
            else None
        ),
    )
    variables = {**variables, **new}
    again, new = model.apply(variables, images(7), train=True, mutable=["batch_stats"])
    parity.assert_close(again, other, "logits of the second call")
    after = export_discriminator({**variables, **new}, model)
    for name, array in parity.state_of(judge).items():
        parity.assert_close(after[name], array, name)
    evaluated = model.apply({**variables, **new}, x, train=False)
    parity.assert_close(evaluated, judge.eval().classify(leaf), "evaluation logits")


@pytest.mark.parametrize("size", [(3, 32, 20, 3), (2, 12, 28, 3)])
def test_augmentation(size):
    augment = original.module("diffaug").DiffAug(prob=1.0, cutout=0.0)
    x = parity.normal(*size, seed=0)
    numbers = np.random.default_rng(1).uniform(size=(7, size[0], 1, 1)).astype(np.float32)
    leaf = parity.to_nchw(x).requires_grad_()
    real = torch.rand

    def drawn(*shape, **options):
        return torch.tensor(numbers) if shape == numbers.shape else real(*shape, **options)

    with mock.patch.object(torch, "rand", drawn):
        expected = augment.aug(leaf)
    weight = parity.normal(*size, seed=2)
    (expected * parity.to_nchw(weight)).sum().backward()

    def weighted(x):
        augmented = diff_augment(x, numbers[:5, :, 0, 0].T)
        return (augmented * weight).sum(), augmented

    gradient, actual = jax.jit(jax.grad(weighted, has_aux=True))(x)
    parity.assert_close(actual, parity.to_nhwc(expected), "images")
    parity.assert_close(gradient, parity.to_nhwc(leaf.grad), "gradient")


def test_losses_and_the_adaptive_weight():
    losses = original.module("gan_loss")
    real, fake = parity.normal(3, 7, seed=0), parity.normal(3, 7, seed=1)
    given = torch.tensor(real), torch.tensor(fake)
    np.testing.assert_allclose(hinge_loss(real, fake), losses.hinge_d_loss(*given), rtol=1e-5)
    np.testing.assert_allclose(generator_loss(fake), losses.vanilla_g_loss(given[1]), rtol=1e-5)
    layer = torch.tensor(parity.normal(4, 5, seed=2), requires_grad=True)
    terms = (layer**2).sum(), (layer**3).sum()
    gradients = [torch.autograd.grad(term, layer, retain_graph=True)[0].numpy() for term in terms]
    for limit in (1e4, 0.1):
        expected = original.calculate_adaptive_weight(*terms, layer, limit)
        actual = adaptive_weight(*gradients, epsilon=1e-6, limit=limit)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    nothing = (layer * 0).sum()
    expected = original.calculate_adaptive_weight(terms[0], nothing, layer)
    assert expected == 1e4
    np.testing.assert_allclose(
        adaptive_weight(gradients[0], 0 * gradients[1], epsilon=1e-6, limit=1e4), expected
    )
