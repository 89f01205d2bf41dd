"""The DINO discriminator against torch's spectral and instance norms on timm's ViT."""

import copy
import functools

import jax
import jax.numpy as jnp
import kinks
import numpy as np
import parity
import pytest
import torch
from torch import nn
from torch_dino_discriminator import TorchDinoDiscriminator, variables_of

from repae_jax.errors import UserError
from repae_jax.interop.dino_discriminator import export_discriminator, load_discriminator
from repae_jax.models.dino_discriminator import DINO_CONFIGS, ENCODER, DinoDiscriminator
from repae_jax.models.spectral_norm import InstanceNorm, SpectralConv1d

MODEL = DinoDiscriminator(
    patch_size=4, dim=12, depth=3, num_heads=2, blocks=(1, 3), kernel=5, side=16
)
SIZE = (3, 20, 24, 3)  # neither square nor of the ViT's side


@functools.cache
def _pair():
    reference = TorchDinoDiscriminator(MODEL)
    return reference, variables_of(parity.state_of(reference), reference.dino[0], MODEL)


@pytest.fixture
def pair():
    """The reference and our variables; a test may change both."""
    return copy.deepcopy(_pair())


@functools.partial(jax.jit, static_argnames="train")
def logits_of(variables, x, *, train=False):
    """Logits, and in train mode the updated collections."""
    return MODEL.apply(variables, x, train=train, mutable=["batch_stats"] if train else False)


def images(seed, size=SIZE):
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


def safe_images(reference):
    """Images that keep a margin from the reference's kinks, in both modes."""

    def distances_of(x):
        def distances(dtype):
            module = copy.deepcopy(reference).to(dtype)
            with kinks.recorded(module.heads) as found:
                for mode in (False, True):
                    module.train(mode)(parity.to_nchw(x).to(dtype))
            return found

        return distances

    return kinks.first_safe(map(images, range(100)), distances_of)


def statistics(variables):
    return {name: a for name, a in export_discriminator(variables, MODEL).items() if "_u" in name}


@pytest.mark.parametrize("train", [False, True])
def test_values_and_gradients_equal_torch(pair, train):
    reference, variables = pair
    x = safe_images(reference)
    leaf = parity.to_nchw(x).requires_grad_()
    expected = reference.train(train)(leaf)
    weight = parity.normal(*expected.shape, seed=1)
    (expected * torch.tensor(weight)).sum().backward()

    def weighted(params, x):
        given = {**variables, "params": params}
        logits, new = MODEL.apply(given, x, train=train, mutable=["batch_stats"])
        return (logits * weight).sum(), (logits, new)

    gradient = parity.quick_jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_params, by_x), (logits, new) = gradient(variables["params"], x)
    parity.assert_close(logits, expected, "logits")
    parity.assert_close(by_x, parity.to_nhwc(leaf.grad), "gradient by the images")
    gradients = parity.gradients_of(reference)
    actual = export_discriminator({**variables, "params": by_params}, MODEL)
    parity.assert_tensors_close(
        {name: actual[name] for name in gradients}, gradients, vanishing=_vanishing
    )
    after = export_discriminator({**variables, **new}, MODEL)
    for name, array in parity.state_of(reference).items():
        parity.assert_close(after[name], array, name)


def _vanishing(name):
    """A bias before an instance norm has no gradient but rounding."""
    before_norm = name.endswith((".0.0.bias", ".fn.0.bias"))
    return name.replace("bias", "weight_orig") if before_norm else None


def test_a_training_call_does_one_power_iteration_and_others_none(pair):
    reference, variables = pair
    reference.train()
    for seed in range(3):
        reference(parity.to_nchw(images(seed)))
        _, new = logits_of(variables, images(seed), train=True)
        variables = {**variables, **new}
    actual, expected = statistics(variables), parity.state_of(reference)
    assert len(actual) == 3 * (len(MODEL.blocks) + 1)
    for name, array in actual.items():
        parity.assert_close(array, expected[name], name)
    logits, same = MODEL.apply(variables, images(4), train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])
    parity.assert_close(logits, reference.eval()(parity.to_nchw(images(4))), "evaluation logits")


def test_the_spectral_norm_tends_to_one():
    conv = SpectralConv1d(7, kernel=3)
    x = jnp.asarray(parity.normal(1, 6, 5, seed=0))
    variables = conv.init(jax.random.key(0), x, train=True)
    step = jax.jit(lambda v: conv.apply(v, x, train=True, mutable=["batch_stats"])[1])
    for _ in range(100):
        variables = {**variables, **step(variables)}
    matrix = np.asarray(variables["params"]["kernel"]).reshape(-1, 7)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    scaled = jax.tree.map(lambda a: a / largest, variables["params"]["kernel"])
    unit = {**variables, "params": {**variables["params"], "kernel": scaled}}
    parity.assert_close(
        conv.apply(variables, x, train=False), conv.apply(unit, x, train=False), "output"
    )
    padded = np.concatenate([x[:, -1:], x, x[:, :1]], axis=1)
    kernel, bias = np.asarray(scaled), np.asarray(variables["params"]["bias"])
    by_hand = sum(padded[:, i : i + 6] @ kernel[i] for i in range(3)) + bias
    parity.assert_close(conv.apply(variables, x, train=False), by_hand, "output by hand")


def test_an_initial_call_leaves_u_and_v_as_drawn():
    conv, x, key = SpectralConv1d(7), jnp.ones((1, 4, 5)), jax.random.key(0)
    drawn, trained = (conv.init(key, x, train=train) for train in (False, True))
    jax.tree.map(np.testing.assert_array_equal, drawn, trained)
    for vector in drawn["batch_stats"].values():
        assert abs(np.linalg.norm(vector) - 1) < 1e-6


def test_the_instance_norm_keeps_its_epsilon():
    x = 1e-3 * parity.normal(2, 9, 4, seed=0)
    norm = InstanceNorm()
    variables = norm.init(jax.random.key(0), x)
    expected = nn.functional.instance_norm(torch.tensor(x).transpose(1, 2), eps=1e-6)
    parity.assert_close(norm.apply(variables, x), expected.transpose(1, 2), "normalized")


def test_two_heads_see_the_last_block(pair):
    """A change of the last block's output reaches exactly the first head and the last."""
    _, variables = pair
    changed = jax.tree.map(jnp.asarray, variables)
    changed["constants"][ENCODER]["blocks_2"]["mlp"]["fc2"]["bias"] += parity.normal(12, seed=0)
    one, other = (logits_of(v, images(0)) for v in (variables, changed))
    differ = np.any(np.asarray(one != other).reshape(3, 3, 16), axis=(0, 2))
    np.testing.assert_array_equal(differ, [True, False, True])


def test_the_final_norm_is_not_used(pair):
    _, variables = pair
    changed = jax.tree.map(jnp.asarray, variables)
    changed["constants"][ENCODER]["norm"]["scale"] *= 2
    one, other = (logits_of(v, images(0)) for v in (variables, changed))
    np.testing.assert_array_equal(one, other)


def test_the_bias_of_the_keys_changes_nothing(pair):
    """RAE sets it to zero, and the softmax does not see it."""
    _, variables = pair
    changed = jax.tree.map(jnp.asarray, variables)
    bias = changed["constants"][ENCODER]["blocks_0"]["attn"]["qkv"]["bias"]
    assert np.abs(bias[12:24]).min() > 0
    changed["constants"][ENCODER]["blocks_0"]["attn"]["qkv"]["bias"] = bias.at[12:24].set(0)
    one, other = (logits_of(v, images(0)) for v in (variables, changed))
    parity.assert_close(one, other, "logits", 1e-5)


def test_names_come_back_and_may_lie_in_a_checkpoint(pair):
    reference, variables = pair
    state = parity.state_of(reference)
    back = export_discriminator(variables, MODEL)
    assert set(back) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    nested = {"disc": state, "model": {"decoder_pred.weight": np.zeros((2, 2), np.float32)}}
    loaded = load_discriminator(nested, MODEL)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], variables["params"])


def test_a_wrong_file_is_named(pair):
    state = parity.state_of(pair[0])
    with pytest.raises(UserError, match=r"file: tensor 'heads.1.2.bias' is missing"):
        load_discriminator(
            {k: v for k, v in state.items() if k != "heads.1.2.bias"}, MODEL, source="file"
        )
    longer = MODEL.clone(kernel=3)
    with pytest.raises(UserError, match=r"'heads.0.1.fn.0.weight_orig' has shape \(12, 12, 5\)"):
        load_discriminator(state, longer, source="file")


def test_presets_are_those_of_rae():
    model = DinoDiscriminator(**DINO_CONFIGS["dino-s8"])
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=True)
    )
    logits, _ = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((2, 256, 256, 3)), train=True, mutable=["batch_stats"]),
        shapes,
    )
    assert logits.shape == (2, 5 * 28**2)
    assert model.encoder().native_grid == 28
    assert shapes["params"]["heads_4"]["conv_2"]["kernel"].shape == (9, 384, 384)


def test_bfloat16_keeps_logits_and_statistics_in_float32(pair):
    _, variables = pair
    exact = logits_of(variables, images(0))
    half = MODEL.clone(dtype=jnp.bfloat16)
    logits, new = half.apply(variables, images(0), train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    logits = half.apply(variables, images(0), train=False)
    assert 0 < np.abs(logits - exact).max() < 0.2 * np.abs(exact).max()
