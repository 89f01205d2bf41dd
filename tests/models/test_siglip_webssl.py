"""SigLIP, SigLIP 2 and WebSSL as teachers, against transformers' modules."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from parity import assert_close, normal, quick_jit, randomise, state_of, to_nchw
from torch_vits import DEPTH, DIM, GRID, HEADS, PATCH, saved_by, small

from repae_jax.errors import UserError
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import create_vit

SIZES = dict(
    hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
    intermediate_size=4 * DIM, image_size=PATCH * GRID, patch_size=PATCH,
)  # fmt: skip


@functools.cache
def siglip():
    text = dict(SIZES, vocab_size=7, max_position_embeddings=4)
    text = {k: v for k, v in text.items() if k not in ("image_size", "patch_size")}
    config = transformers.SiglipConfig(vision_config=SIZES, text_config=text)
    return randomise(transformers.SiglipModel(config)).eval()


@functools.cache
def webssl():
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    config = transformers.Dinov2Config(**sizes, use_swiglu_ffn=True)
    return randomise(transformers.Dinov2Model(config)).eval()


def images(rows, columns):
    return normal(2, rows * PATCH, columns * PATCH, 3, seed=0)


@pytest.mark.parametrize("grid", [(GRID, GRID), (GRID + 2, GRID - 1)], ids=["native", "resampled"])
@pytest.mark.parametrize("file", ["both towers", "image tower"])
def test_siglip_equals_transformers(file, grid):
    reference, x = siglip(), images(*grid)
    with torch.no_grad():
        expected = reference.vision_model(
            to_nchw(x), interpolate_pos_encoding=grid != (GRID, GRID)
        ).last_hidden_state
    tensors = saved_by(reference)
    if file == "image tower":
        tensors = {n: a for n, a in tensors.items() if n.startswith("vision_model.")}
    model = small("siglip2-b")
    tokens = quick_jit(model.apply)(load_vit(tensors, model), x)
    assert_close(tokens.patch_tokens, expected, "tokens")
    assert tokens.class_token is None


def test_siglip_has_the_tanh_approximation():
    model, x = small("siglip-b"), images(GRID, GRID)
    variables = load_vit(saved_by(siglip()), model)
    exact = quick_jit(model.clone(activation="gelu").apply)(variables, x).patch_tokens
    with torch.no_grad():
        expected = siglip().vision_model(to_nchw(x)).last_hidden_state
    with pytest.raises(AssertionError):
        assert_close(exact, expected, "tokens", 1e-5)
    ours = quick_jit(model.apply)(variables, x).patch_tokens
    assert_close(ours, expected, "tokens", 1e-5)


@pytest.mark.parametrize("grid", [(GRID, GRID), (GRID + 2, GRID - 1)], ids=["native", "resampled"])
def test_webssl_equals_transformers(grid):
    reference, x = webssl(), images(*grid)
    with torch.no_grad():
        expected = reference(to_nchw(x)).last_hidden_state
    model = small("webssl-1b", native_grid=GRID)
    for tensors in (saved_by(reference), state_of(reference)):
        tokens = quick_jit(model.apply)(load_vit(tensors, model), x)
        assert_close(tokens.patch_tokens, expected[:, 1:], "tokens")
        assert_close(tokens.class_token, expected[:, 0], "class token")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("siglip-b", dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                          intermediate_size=3072, image_size=256, patch_size=16)),
        ("siglip-so400m", dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16,
                               intermediate_size=4304, image_size=224, patch_size=14)),
        ("siglip2-so400m", dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16,
                                intermediate_size=4304, image_size=256, patch_size=16)),
        ("siglip2-g", dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=16,
                           intermediate_size=6144, image_size=256, patch_size=16)),
    ],
)  # fmt: skip
def test_published_siglip_sizes(name, config):
    with torch.device("meta"):
        vision = transformers.SiglipVisionConfig(**config, vision_use_head=False)
        reference = transformers.SiglipVisionModel(vision)
    assert_same_size(name, reference, config["image_size"])


@pytest.mark.parametrize(
    ("name", "dim", "depth", "heads"),
    [("webssl-300m", 1024, 24, 16), ("webssl-2b", 2688, 24, 21), ("webssl-7b", 4096, 32, 32)],
)
def test_published_webssl_sizes(name, dim, depth, heads):
    with torch.device("meta"):
        config = transformers.Dinov2Config(
            hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, image_size=224,
            patch_size=14, use_swiglu_ffn=True,
        )  # fmt: skip
        reference = transformers.Dinov2Model(config)
    assert_same_size(name, reference, 224, unused=dim)  # the mask token


def assert_same_size(name, reference, side, unused=0):
    model = create_vit(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert ours == sum(p.numel() for p in reference.parameters()) - unused
    assert model.grid(256) == 16


def test_a_file_of_the_other_family_is_named():
    with pytest.raises(UserError, match="the weights of DINOv2, but the model is SigLIP's"):
        load_vit(saved_by(webssl()), small("siglip-b"))
