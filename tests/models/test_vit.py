import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from exported import export_vit
from torch.nn import functional

from repae_jax.errors import UserError
from repae_jax.interop.vit import load_vit
from repae_jax.models.convnet import ConvLevel
from repae_jax.models.encoders.vit import ViT, create_vit

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):  # a build for another torch: transformers can do without
    sys.modules["torchvision"] = None

PATCH, GRID, DIM, DEPTH, HEADS = 3, 4, 24, 2, 3


def reference_and_model(registers=0, swiglu=False):
    """transformers' module with every weight random, and our ViT with its weights."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    sizes = {
        "hidden_size": DIM,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": PATCH * GRID,
        "patch_size": PATCH,
        "use_swiglu_ffn": swiglu,
    }
    torch.manual_seed(0)
    if registers:
        config = Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        reference = Dinov2WithRegistersModel(config)
    else:
        reference = Dinov2Model(Dinov2Config(**sizes))
    for name, parameter in reference.named_parameters():
        factor = "lambda1" in name or ("norm" in name and name.endswith("weight"))
        parameter.data.normal_(1.0 if factor else 0.0, 0.3)
    model = ViT(
        PATCH, GRID, DIM, DEPTH, HEADS, swiglu=swiglu, num_registers=registers,
        table_filter="antialias" if registers else "bicubic",
    )  # fmt: skip
    tensors = {name: t.numpy() for name, t in reference.state_dict().items()}
    return reference.eval(), model, load_vit(tensors, model)


def images(*grid):
    height, width = (PATCH * side for side in grid)
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def assert_close(actual, expected, what):
    expected = np.asarray(expected.detach())
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error <= 1e-4, f"{what}: {error}"


@pytest.mark.parametrize(
    ("grid", "registers", "swiglu"),
    [
        ((GRID, GRID), 0, False),
        ((GRID, GRID), 0, True),
        ((GRID, GRID), 3, False),
        ((3, 3), 0, False),  # Dinov2Model resamples its table without antialias,
        ((3, 3), 3, False),  # its sibling with registers with it
        ((2, 5), 3, True),
    ],
)
def test_values_and_gradients_equal_transformers(grid, registers, swiglu):
    reference, model, variables = reference_and_model(registers, swiglu)
    x = images(*grid)
    x_torch = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    expected = reference(x_torch).last_hidden_state
    first = 1 + registers
    weight = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    weight[:, 1:first] = 0.0  # the reference returns the registers' tokens too
    (expected * torch.tensor(weight)).sum().backward()

    def weighted(variables, x):
        tokens = model.apply(variables, x)
        loss = (tokens.patch_tokens * weight[:, first:]).sum()
        return loss + (tokens.class_token * weight[:, 0]).sum(), tokens

    gradient = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
    (by_weights, by_x), tokens = gradient(variables, x)
    assert_close(tokens.patch_tokens, expected[:, first:], "patch tokens")
    assert_close(tokens.class_token, expected[:, 0], "class token")
    assert_close(by_x.transpose(0, 3, 1, 2), x_torch.grad, "gradient by the images")
    by_name = export_vit(by_weights, model, "transformers5")
    for name, parameter in reference.named_parameters():
        if name.endswith("k_proj.bias"):  # moves all logits of a row alike: gradient 0
            scale = np.abs(by_name[name.replace("k_proj", "q_proj")]).max()
            assert np.abs(by_name[name]).max() < 1e-4 * scale
        elif not name.endswith("mask_token"):
            assert_close(by_name[name], parameter.grad, name)


def test_table_without_an_entry_for_the_class_token():
    model = ViT(PATCH, GRID, DIM, 1, HEADS, class_position=False)
    with_entry = model.clone(class_position=True)
    x = images(3, 2)
    variables = jax.jit(with_entry.init)(jax.random.key(0, impl="rbg"), x)
    params = dict(variables["params"])
    table = params["position_table"]
    # an entry for the class token is the same as that much more of the class token itself
    params["class_token"] = params["class_token"] + table[:, :1]
    params["position_table"] = table[:, 1:]
    expected = jax.jit(with_entry.apply)(variables, x)
    actual = jax.jit(model.apply)({"params": params}, x)
    np.testing.assert_allclose(actual.patch_tokens, expected.patch_tokens, atol=1e-6)
    np.testing.assert_allclose(actual.class_token, expected.class_token, atol=1e-6)


def test_small_vit_starts_sensibly():
    model = ViT(4, 8, 128, 1, 4, layer_scale=None)
    x = jnp.zeros((1, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), x)["params"]
    block = params["blocks_0"]
    assert set(block) == {"norm1", "attn", "norm2", "mlp"}
    dense = [params["patch_embed"], *block["attn"].values(), *block["mlp"].values()]
    for layer in dense:
        assert 0.015 < layer["kernel"].std() < 0.021
        assert np.abs(layer["kernel"]).max() < 0.05
        assert not layer["bias"].any()
    assert 0.015 < params["position_table"].std() < 0.021


def test_bfloat16_gives_float32_tokens_near_the_exact_ones():
    _, model, variables = reference_and_model(registers=2)
    exact = jax.jit(model.apply)(variables, images(3, 3))
    half = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images(3, 3))
    for actual, expected in zip(half, exact, strict=True):
        assert actual.dtype == jnp.float32
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert 0 < error < 0.05


# in millions, as timm lists these models; without the mask token
@pytest.mark.parametrize(
    ("name", "millions"),
    [("dinov2-s", 22.06), ("dinov2-b", 86.58), ("dinov2-l", 304.37), ("dinov2-g", 1136.48)],
)
def test_published_sizes(name, millions):
    for suffix, extra_tokens in (("", 0), ("-reg", 4)):
        model = create_vit(name + suffix)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert round((count - extra_tokens * model.dim) / 1e6, 2) == millions


def test_configs_can_be_overridden_and_unknown_names_are_named():
    assert create_vit("dinov2-b", dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert create_vit("dinov2-b-reg", native_grid=16).native_grid == 16
    with pytest.raises(UserError, match=r"'dinov2-x'.*dinov2-b, .*dinov2-s-reg"):
        create_vit("dinov2-x")


def test_sides_that_the_patch_does_not_divide_are_refused():
    model = ViT(PATCH, GRID, DIM, 1, HEADS)
    with pytest.raises(UserError, match=r"12 x 13 pixels.*3 x 3"):
        model.init(jax.random.key(0), jnp.zeros((1, 12, 13, 3)))


def random_variables(model, *inputs):
    variables = model.init(jax.random.key(0), *inputs)
    leaves, treedef = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return treedef.unflatten([rng.normal(0, 0.3, leaf.shape).astype("f") for leaf in leaves])


def test_a_convolutional_level_is_what_torch_makes_of_it():
    level = ConvLevel(16)
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype("f")
    variables = random_variables(level, x)
    weight = np.random.default_rng(2).normal(size=(2, 3, 4, 16)).astype("f")

    given = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), variables)["params"]
    x_torch = torch.tensor(x, requires_grad=True)

    def convolved(h, name, **options):
        kernel = given[name]["kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(h, kernel, given[name]["bias"], **options)

    padded = functional.pad(x_torch.permute(0, 3, 1, 2), (0, 1, 0, 1))  # even sides: "SAME"
    y = convolved(padded, "down", stride=2)
    for i in (1, 2):
        norm = given[f"norm_{i}"]
        h = functional.group_norm(y, 8, norm["scale"], norm["bias"], eps=1e-6)
        y = y + convolved(functional.silu(h), f"conv_{i}", padding=1)
    y = y.permute(0, 2, 3, 1)
    (y * torch.tensor(weight)).sum().backward()

    def loss(params, images):
        return (level.apply({"params": params}, images) * weight).sum()

    assert_close(level.apply(variables, x), y, "values")
    grads, by_image = jax.grad(loss, (0, 1))(variables["params"], x)
    assert_close(by_image, x_torch.grad, "gradient of the image")
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(given), strict=True
    ):
        assert_close(ours, theirs.grad, jax.tree_util.keystr(path))


def test_a_vit_behind_a_stem_sees_the_stems_features_as_its_image():
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype("f")
    hybrid = ViT(8, 3, DIM, DEPTH, HEADS, stem=(8, 16))
    params = random_variables(hybrid, x)["params"]
    features = x
    for i, width in enumerate(hybrid.stem):
        features = ConvLevel(width).apply({"params": params[f"stem_{i}"]}, features)
    assert features.shape == (2, 4, 6, 16)
    plain = {name: each for name, each in params.items() if not name.startswith("stem")}
    expected = ViT(2, 3, DIM, DEPTH, HEADS).apply({"params": plain}, features)
    actual = hybrid.apply({"params": params}, x)
    assert actual.patch_tokens.shape == (2, 6, DIM)
    np.testing.assert_array_equal(actual.patch_tokens, expected.patch_tokens)
    np.testing.assert_array_equal(actual.class_token, expected.class_token)
    with pytest.raises(UserError, match="images of 12 x 24 pixels do not divide into patches"):
        hybrid.apply({"params": params}, x[:, :12])
