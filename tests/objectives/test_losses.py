import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
from checkouts import module_of
from torch.nn import functional

from repae_jax.objectives.adversarial import generator_loss, hinge_loss, lecam_loss
from repae_jax.objectives.alignment import alignment_loss, dispersive_loss, spatial_norm, unit
from repae_jax.objectives.diffusion import cosine_loss, denoising_loss
from repae_jax.objectives.reconstruction import RECONSTRUCTION


def assert_equals_torch(ours, theirs, *inputs):
    """Value, and gradient by every input."""
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = theirs(*leaves)
    expected.backward()
    count = tuple(range(len(inputs)))
    value, gradients = parity.quick_jit(jax.value_and_grad(ours, argnums=count))(*inputs)
    parity.assert_close(value, expected, "value", 1e-5)
    for i, (actual, leaf) in enumerate(zip(gradients, leaves, strict=True)):
        parity.assert_close(actual, leaf.grad, f"gradient by input {i}", 1e-5)


def torch_alignment(projections, teachers):
    """REPA's loss, one image after the other, as its authors wrote it down."""
    total = 0.0
    for projection, teacher in zip(projections, teachers, strict=True):
        for p, t in zip(projection, teacher, strict=True):
            cosine = functional.normalize(p, dim=-1) * functional.normalize(t, dim=-1)
            total = total - cosine.sum(-1).mean()
    return total / (len(projections) * len(projections[0]))


def tokens(*widths, seed):
    return [parity.normal(3, 7, width, seed=seed + width) for width in widths]


@pytest.mark.parametrize("widths", [(6,), (6, 11)])
def test_alignment_equals_torch(widths):
    def split(loss):
        return lambda *inputs: loss(inputs[: len(widths)], inputs[len(widths) :])

    projections, others = tokens(*widths, seed=0), tokens(*widths, seed=9)
    teachers = [100 * (p + 2 * t) for p, t in zip(projections, others, strict=True)]
    inputs = [*projections, *teachers]
    assert_equals_torch(split(alignment_loss), split(torch_alignment), *inputs)


def test_alignment_is_minus_one_for_equal_directions_and_one_for_opposite():
    x = parity.normal(2, 4, 8, seed=0)
    assert alignment_loss([x], [3 * x]) == pytest.approx(-1)
    assert alignment_loss([x], [-3 * x]) == pytest.approx(1)


def test_alignment_at_zero_vectors_equals_torch_and_stays_finite():
    (p,), (t,) = tokens(6, seed=0), tokens(6, seed=9)
    p[1, 2] = 0.0  # here the gradient is the teacher's direction over the clamp, 1e12
    t[0, 5] = 0.0
    leaf = torch.tensor(p, requires_grad=True)
    expected = torch_alignment([leaf], [torch.tensor(t)])
    expected.backward()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: alignment_loss([p], [t])))(p)
    parity.assert_close(value, expected, "value", 1e-5)
    assert np.isfinite(gradient).all()
    parity.assert_close(gradient[1, 2], leaf.grad[1, 2], "gradient at zero", 1e-5)
    rest = np.ones(p.shape[:2], bool)
    rest[1, 2] = False
    parity.assert_close(gradient[rest], leaf.grad.numpy()[rest], "gradient elsewhere", 1e-5)
    assert not gradient[0, 5].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_directions_of_half_precision_tokens_are_taken_in_float32(dtype):
    x = 300 * parity.normal(2, 5, 64, seed=0)  # squares overflow half precision
    half = jnp.asarray(x, dtype)
    actual = unit(half)
    assert actual.dtype == jnp.float32
    expected = functional.normalize(torch.tensor(np.asarray(half, np.float32)), dim=-1)
    parity.assert_close(actual, expected, "directions", 1e-6)


def test_alignment_refuses_other_grids():
    with pytest.raises(ValueError, match=r"\(2, 16, 8\).*\(2, 49, 8\).*same number of tokens"):
        alignment_loss([jnp.zeros((2, 16, 8))], [jnp.zeros((2, 49, 8))])
    with pytest.raises(ValueError):
        alignment_loss([jnp.zeros((2, 16, 8))], [])


def logits(seed):
    """On both sides of every hinge."""
    values = 2 * parity.normal(3, 4, 5, 1, seed=seed)
    assert (values > 1).any()
    assert (values < -1).any()
    return values


def test_hinge_equals_torch():
    def theirs(real, fake):
        real = torch.clamp(1 - real, min=0).mean()
        return 0.5 * (real + torch.clamp(1 + fake, min=0).mean())

    assert_equals_torch(hinge_loss, theirs, logits(0), logits(1))


def test_generator_equals_torch():
    assert_equals_torch(generator_loss, lambda fake: -fake.mean(), logits(0))


@pytest.mark.parametrize(
    ("means", "averages"), [((0.7, -0.3), (0.4, -0.1)), ((0.2, 0.6), (0.3, -0.5))]
)
def test_lecam_equals_torch(means, averages):
    def theirs(real, fake, ema_real, ema_fake):
        return (real - ema_fake).relu() ** 2 + (ema_real - fake).relu() ** 2

    inputs = [np.float32(x) for x in (*means, *averages)]
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = theirs(*leaves)
    expected.backward()
    value, gradients = jax.value_and_grad(lecam_loss, argnums=(0, 1, 2, 3))(*inputs)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert gradients == pytest.approx([leaf.grad.item() for leaf in leaves], rel=1e-5)


def test_lecam_is_zero_where_the_means_are_on_the_right_side():
    assert lecam_loss(*(jnp.float32(x) for x in (-0.5, 0.9, 0.1, -0.2))) == 0


@pytest.mark.parametrize(
    ("name", "theirs"), [("l1", functional.l1_loss), ("l2", functional.mse_loss)]
)
def test_reconstruction_equals_torch(name, theirs):
    images, reconstructions = (parity.normal(2, 4, 3, 3, seed=seed) for seed in range(2))
    assert_equals_torch(RECONSTRUCTION[name], theirs, images, reconstructions)


def test_denoising_equals_torch():
    velocity, target = (parity.normal(2, 4, 4, 3, seed=seed) for seed in range(2))
    assert_equals_torch(denoising_loss, functional.mse_loss, velocity, target)
    half = jnp.asarray(velocity, jnp.bfloat16)
    loss = denoising_loss(half, target)
    assert loss.dtype == jnp.float32
    expected = functional.mse_loss(torch.tensor(np.asarray(half, np.float32)), torch.tensor(target))
    parity.assert_close(loss, expected, "in bfloat16", 1e-5)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_spatial_norm_is_torchs(share):
    tokens = np.random.default_rng(0).normal(3, 2, size=(2, 16, 8)).astype(np.float32)
    t = torch.tensor(tokens, dtype=torch.float64)
    expected = (t - share * t.mean(1, keepdim=True)) / (t.std(1, keepdim=True) + 1e-6)
    np.testing.assert_allclose(spatial_norm(tokens, share), expected, rtol=1e-4, atol=1e-5)


def test_spatial_norm_of_equal_tokens_is_finite():
    assert np.isfinite(spatial_norm(np.ones((1, 4, 2), np.float32), 1.0)).all()


@pytest.mark.skipif(not os.environ.get("IREPA_ORIGINAL"), reason="set IREPA_ORIGINAL to a checkout")
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_spatial_norm_is_the_originals(share):
    file = pathlib.Path(os.environ["IREPA_ORIGINAL"]) / "jit" / "spnorm.py"
    tokens = np.random.default_rng(0).normal(3, 2, size=(2, 16, 8)).astype(np.float32)
    expected = module_of(file, "irepa_spnorm").spatial_zscore(torch.tensor(tokens), alpha=share)
    np.testing.assert_allclose(spatial_norm(tokens, share), expected, rtol=1e-4, atol=1e-5)


def test_the_cosine_loss_is_torchs():
    velocity, target = (parity.normal(2, 3, 4, 5, seed=seed) for seed in range(2))

    def theirs(v, t):
        return (1 - functional.cosine_similarity(v, t, dim=-1)).mean()

    assert_equals_torch(cosine_loss, theirs, velocity, target)
    velocity[0, 0, 0] = 0  # a new model predicts it everywhere
    leaf = torch.tensor(velocity, requires_grad=True)
    theirs(leaf, torch.tensor(target)).backward()
    gradient = jax.grad(cosine_loss)(velocity, target)
    parity.assert_close(gradient[0, 0, 0], leaf.grad[0, 0, 0], "gradient at zero")


def test_the_dispersive_loss_is_its_authors():
    """As the code of arXiv 2506.09027: all pairs, each image with itself, over the width."""

    def theirs(tokens):
        z = tokens.flatten(1)
        pairs = functional.pdist(z).square() / z.shape[1]
        return torch.cat([pairs, pairs, torch.zeros(len(z))]).neg().exp().mean().log()

    tokens = parity.normal(5, 4, 6, seed=0) + 10.0  # far from zero, where products would cancel
    assert_equals_torch(dispersive_loss, theirs, tokens)
    np.testing.assert_allclose(dispersive_loss(np.ones((3, 4, 6), np.float32)), 0.0, atol=1e-6)
