"""The teachers beside DINOv2, token by token, and the presets that the original builds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from original_teachers import NEEDS_ORIGINAL, original_preset
from parity import assert_close, normal, original_module, quick_jit, state_of, to_nchw
from torch_vits import (
    GRID,
    PATCH,
    PRESETS,
    openai_names,
    saved_by,
    small,
    timm_reference,
    transformers_reference,
)

from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import VIT_CONFIGS, ViT, create_vit


def images(*grid):
    return normal(2, grid[0] * PATCH, grid[1] * PATCH, 3, seed=0)


def assert_tokens(actual, expected, what):
    patches, class_token = expected
    assert_close(actual.patch_tokens, patches, f"{what}: patch tokens")
    assert (actual.class_token is None) == (class_token is None)
    if class_token is not None:
        assert_close(actual.class_token, class_token, f"{what}: class token")


@pytest.mark.parametrize("grid", [(GRID, GRID), (GRID + 2, GRID - 1)], ids=["native", "resampled"])
@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_equal_timm(preset, grid):
    reference = timm_reference(preset)
    model, tensors = small(preset), state_of(reference.module)
    if preset == "clip-l":  # whose authors use other names
        tensors = openai_names(tensors)
    variables = load_vit(tensors, model)
    x = images(*grid)
    with torch.no_grad():
        expected = reference.tokens(to_nchw(x))
    assert_tokens(quick_jit(model.apply)(variables, x), expected, preset)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "mocov3-b"])
def test_tokens_equal_transformers(preset):
    reference = transformers_reference(preset)
    # the reference's MAE ends in the norm, of which the preset does without
    model = small(preset, final_norm=preset != "clip-l")
    x = images(GRID, GRID)
    with torch.no_grad():
        expected = reference.tokens(to_nchw(x))
    variables = load_vit(saved_by(reference.module), model)
    assert_tokens(quick_jit(model.apply)(variables, x), expected, preset)
    renamed = load_vit(state_of(reference.module), model)  # as its modules name it today
    jax.tree.map(np.testing.assert_array_equal, renamed, variables)


def test_mae_tokens_are_those_in_front_of_the_final_norm():
    reference = transformers_reference("mae-l")
    entered = []
    reference.module.layernorm.register_forward_pre_hook(lambda _, inputs: entered.append(*inputs))
    x = images(GRID, GRID)
    with torch.no_grad():
        reference.tokens(to_nchw(x))
    model = small("mae-l")
    variables = load_vit(saved_by(reference.module), model)
    (expected,) = entered
    tokens = quick_jit(model.apply)(variables, x)
    assert_tokens(tokens, (expected[:, 1:], expected[:, 0]), "mae-l")


def test_bfloat16_gives_float32_tokens_near_the_exact_ones():
    model = small("clip-l")
    variables = load_vit(state_of(transformers_reference("clip-l").module), model)
    exact = quick_jit(model.apply)(variables, images(GRID, GRID))
    half = quick_jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images(GRID, GRID))
    for actual, expected in zip(half, exact, strict=True):
        assert actual.dtype == jnp.float32
        assert 0 < np.abs(actual - expected).max() / np.abs(expected).max() < 0.05


def test_quick_gelu_and_registers_without_a_class_token_can_be_combined():
    model = ViT(PATCH, GRID, 8, 1, 2, activation="quick_gelu", num_registers=3, class_token=False)
    x = images(GRID, GRID)
    variables = model.init(jax.random.key(0), x)
    assert "class_token" not in variables["params"]
    assert variables["params"]["position_table"].shape == (1, GRID**2, 8)
    tokens = model.apply(variables, x)
    assert tokens.patch_tokens.shape == (2, GRID**2, 8)
    assert tokens.class_token is None


# Heads, epsilons and millions of parameters as timm 1.0 builds these architectures without their
# classifiers; less the final norm (2 D) where the preset has none.
@pytest.mark.parametrize(
    ("name", "heads", "epsilon", "millions"),
    [
        ("dino-b", 12, 1e-6, 85.798656),
        ("mocov3-s", 12, 1e-6, 21.665664),  # its ViT-S has heads of 32 features
        ("mocov3-b", 12, 1e-6, 85.798656),
        ("mocov3-l", 16, 1e-6, 303.301632),
        ("mae-l", 16, 1e-6, 303.301632 - 0.002048),
        ("ijepa-h", 16, 1e-6, 630.762240),
        ("clip-l", 16, 1e-5, 303.179776 - 0.002048),
    ],
)
def test_published_sizes(name, heads, epsilon, millions):
    model = create_vit(name)
    x = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == round(millions * 1e6)
    assert (model.num_heads, model.norm_epsilon) == (heads, epsilon)
    assert model.native_grid == 224 // model.patch_size


@NEEDS_ORIGINAL
@pytest.mark.parametrize("name", ["mocov3-s", "mocov3-b", "mocov3-l", "mae-l", "ijepa-h"])
def test_presets_are_what_the_original_builds(name):
    module = original_preset(name)
    model = create_vit(name)
    assert model.num_heads == module.blocks[0].attn.num_heads
    assert model.norm_epsilon == module.blocks[0].norm1.eps
    assert model.depth == len(module.blocks)
    assert model.dim == module.embed_dim
    assert model.patch_size == module.patch_embed.proj.kernel_size[0]


@NEEDS_ORIGINAL
def test_clip_has_as_many_heads_as_the_original_derives():
    clip_vit = original_module("models/clip_vit.py")
    config = VIT_CONFIGS["clip-l"]
    with torch.device("meta"):
        model = clip_vit.Transformer(config["dim"], config["depth"], config["dim"] // 64)
    assert model.resblocks[0].attn.num_heads == config["num_heads"]
    assert model.resblocks[0].ln_1.eps == config["norm_epsilon"]
