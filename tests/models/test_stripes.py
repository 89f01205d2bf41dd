"""Stripes change no value and no gradient, in any network that works on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import convolution_batches
from parity import quick_jit

from repae_jax.models.convolution import conv, convolve
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.group_norm import GroupNorm
from repae_jax.models.lpips import LPIPS
from repae_jax.models.stripes import add_rows, choose_stripes, fold, restripe, stripes_for, unfold
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.models.upsample import UpsampleConv

BATCH = 2
KL = dict(channels=8, multipliers=(1, 2, 2), latent_channels=2, num_res_blocks=1, groups=4)
QWEN = dict(
    base_dim=8, multipliers=(1, 2, 2), latent_channels=2, num_res_blocks=1,
    temporal_downsample=(False, True),
)  # fmt: skip


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weighted(*arrays):
    """A scalar that every element moves in another way."""
    parts = [array.astype(jnp.float32).reshape(-1) for array in arrays]
    return sum((part * jnp.cos(jnp.arange(part.size))).sum() for part in parts)


def moved(variables):
    """Weights away from their initial values, where biases are zero."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def assert_same(module, stripes, variables, call, *inputs):
    """Values and all gradients of `call(module, variables, *inputs)` for some stripes and for none.

    The gradient of a key's bias in an attention is zero but for rounding, hence the scale of a
    gradient is that of all of them.
    """

    def both(module):
        def loss(*arguments):
            outputs = call(module, *arguments)
            return weighted(*outputs), outputs

        arguments = tuple(range(1 + len(inputs)))
        grad = jax.grad(loss, argnums=arguments, has_aux=True)
        return quick_jit(grad)(variables, *inputs)

    striped = module.clone(stripes=stripes)
    batches = [
        convolution_batches(lambda *inputs, m=m: call(m, variables, *inputs), *inputs)
        for m in (striped, module)
    ]
    if any(batches):  # the stripes are there: otherwise the rest compares a module with itself
        assert max(batches[0]) > max(batches[1])
    with jax.default_matmul_precision("highest"):
        (expected, plain), (found, outputs) = both(module), both(striped)
    for a, b in zip(outputs, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 1e-3
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def test_folding_and_unfolding_are_inverse():
    x = images(BATCH, 12, 4, 3)
    folded = fold(x, 3)
    assert folded.shape == (BATCH * 3, 4, 4, 3)
    np.testing.assert_array_equal(folded[4], x[1, 4:8])
    np.testing.assert_array_equal(unfold(folded, 3), x)
    refolded, stripes = restripe(folded, 3, 8)
    assert stripes == 2  # of 6 rows: 4 would leave 3
    np.testing.assert_array_equal(refolded, fold(x, 2))


def test_rows_come_from_the_same_image():
    x = images(BATCH, 8, 2, 1)
    found = unfold(add_rows(fold(x, 2), 2, 1, 2), 2).reshape(BATCH, 2, 7, 2, 1)
    padded = np.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)))
    np.testing.assert_array_equal(found[:, 0], padded[:, 0:7])
    np.testing.assert_array_equal(found[:, 1], padded[:, 4:11])


@pytest.mark.parametrize(
    ("height", "most", "expected"),
    [
        (256, 8, 8),
        (32, 8, 8),
        (16, 8, 4),
        (8, 8, 2),
        (4, 8, 1),
        (24, 8, 4),
        (250, 8, 1),
        (64, 1, 1),
    ],
)
def test_stripes_suit_the_height(height, most, expected):
    stripes = choose_stripes(height, most)
    assert stripes == expected
    assert height % stripes == 0
    assert stripes == 1 or (height // stripes) % 2 == 0


def test_only_a_tpu_with_few_images_has_stripes():
    assert stripes_for("tpu", 4) == 8
    assert stripes_for("tpu", 8) == stripes_for("cpu", 1) == stripes_for("cuda", 1) == 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [None, ((0, 1), (0, 1)), ((1, 1), (1, 1))])
def test_a_convolution(stride, padding):
    if stride == 1 and padding == ((0, 1), (0, 1)):
        pytest.skip("takes a row off every image")
    make = functools.partial(conv, 3, 5, 3, stride=stride, padding=padding)
    x = images(BATCH, 16, 6, 3)
    variables = moved(make().init(jax.random.key(0), x))

    def call(module, variables, x):
        y = unfold(module.apply(variables, fold(x, module.stripes)), module.stripes)
        return (y,)

    assert_same(make(), 4, variables, call, x)


@pytest.mark.parametrize(
    ("rows", "kernel", "stride", "padding"),
    [(16, 3, 1, (0, 0)), (16, 11, 1, (5, 5)), (20, 3, 2, (1, 1)), (24, 2, 2, (1, 1))],
)
def test_a_convolution_that_does_not_fit_the_stripes_is_refused(rows, kernel, stride, padding):
    x, weights = images(BATCH, rows, 24, 3), images(kernel, kernel, 3, 5)
    with pytest.raises(ValueError, match=f"does not fit 4 stripes of {rows // 4} rows"):
        convolve(fold(x, 4), weights, stride, (padding, padding), 4)


@pytest.mark.parametrize("activate", [True, False])
def test_group_norm(activate):
    module = GroupNorm(2, jnp.float32, activate=activate)
    x = 3 + images(BATCH, 16, 3, 4) * np.linspace(1, 2, 16, dtype=np.float32)[:, None, None]
    variables = moved(module.init(jax.random.key(0), x))

    def call(module, variables, x):
        return (unfold(module.apply(variables, fold(x, module.stripes)), module.stripes),)

    assert_same(module, 4, variables, call, x)


def test_upsampling():
    module = UpsampleConv(3, 5)
    x = images(BATCH, 16, 6, 3)
    variables = moved(module.init(jax.random.key(0), x))

    def call(module, variables, x):
        return (unfold(module.apply(variables, fold(x, module.stripes)), module.stripes),)

    assert_same(module, 4, variables, call, x)


TOKENIZERS = {
    "kl": AutoencoderKL(**KL),
    "kl, attention": AutoencoderKL(**KL, attention_levels=(1,)),
    "qwenimage": AutoencoderKLQwenImage(**QWEN),
}
# 40 x 24 has other stripes at each level, and whole images at the lowest.
SIZES = [(32, 32), (64, 24), (40, 24), (36, 28)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("module", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer(module, size):
    x = images(BATCH, *size, 3)
    noise = images(BATCH, size[0] // 4, size[1] // 4, 2, seed=1)
    variables = moved(quick_jit(module.init)(jax.random.key(0), x, noise))

    def call(module, variables, x):
        posterior, reconstruction = module.apply(variables, x, noise)
        return (
            posterior.mean,
            posterior.std,
            0.5 * reconstruction,
        )

    assert_same(module, 8, variables, call, x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lpips(size):
    module = LPIPS(rescale_inputs=True, widths=(4, 4, 4, 4, 4))
    a, b = images(BATCH, *size, 3), images(BATCH, *size, 3, seed=1)
    variables = quick_jit(module.init)(jax.random.key(0), a, b)

    def call(module, variables, a, b):
        return (module.apply(variables, a, b),)

    assert_same(module, 8, variables, call, a, b)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_discriminator(size):
    module = PatchDiscriminator(filters=4)
    x = images(BATCH, *size, 3)
    variables = moved(quick_jit(functools.partial(module.init, train=False))(jax.random.key(0), x))

    def call(module, variables, x):
        logits, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return (
            logits,
            *jax.tree.leaves(updated),
        )

    assert_same(module, 8, variables, call, x)
