"""DINOv3 as a teacher: transformers' module, and its authors' names."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from parity import assert_close, normal, quick_jit, randomise, state_of, to_nchw
from torch_vits import saved_by

from repae_jax.errors import UserError
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import create_vit

PATCH, DIM, DEPTH, HEADS = 4, 48, 2, 3
KINDS = {"plain": ("dinov3-b", 4 * DIM), "gated": ("dinov3-splus", 4 * DIM)}


def small(kind, **changes):
    ratio = {} if kind == "plain" else {"mlp_ratio": 6.0}
    sizes = dict(patch_size=PATCH, dim=DIM, depth=DEPTH, num_heads=HEADS)
    return create_vit(KINDS[kind][0], **sizes | ratio | changes)


@functools.cache
def reference(kind):
    config = transformers.DINOv3ViTConfig(
        patch_size=PATCH, hidden_size=DIM, intermediate_size=KINDS[kind][1],
        num_hidden_layers=DEPTH, num_attention_heads=HEADS, num_register_tokens=3,
        use_gated_mlp=kind == "gated", hidden_act="silu" if kind == "gated" else "gelu",
    )  # fmt: skip
    return randomise(transformers.DINOv3ViTModel(config)).eval()


def authors_names(tensors, rng):
    """transformers' tensors as Meta's, the keys' bias masked, and another value behind the mask."""
    renamed = {"mask_token": tensors["embeddings.mask_token"]}
    for name, array in tensors.items():
        for a, b in (
            ("model.layer.", "layer."), ("layer.", "blocks."), ("attention.o_proj", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"),
            ("embeddings.patch_embeddings", "patch_embed.proj"),
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.register_tokens", "storage_tokens"),
            ("mlp.gate_proj", "mlp.w1"),
            ("mlp.up_proj", "mlp.w2" if any("gate" in n for n in tensors) else "mlp.fc1"),
            ("mlp.down_proj", "mlp.w3" if any("gate" in n for n in tensors) else "mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(a, b)
        if "q_proj" in name or "v_proj" in name or "k_proj" in name or "mask_token" in name:
            continue
        renamed[name] = array
    for i in range(DEPTH):
        there = f"model.layer.{i}.attention"
        parts = [tensors[f"{there}.{part}_proj.weight"] for part in "qkv"]
        renamed[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(parts)
        biases = [tensors[f"{there}.{part}_proj.bias"] for part in "qv"]
        key = rng.normal(size=DIM).astype(np.float32)
        renamed[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([biases[0], key, biases[1]])
        ones = np.ones(DIM, np.float32)
        renamed[f"blocks.{i}.attn.qkv.bias_mask"] = np.concatenate([ones, 0 * ones, ones])
    return renamed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (32, 20)])
def test_tokens_equal_transformers(kind, size):
    module, x = reference(kind), normal(2, *size, 3, seed=0)
    with torch.no_grad():
        expected = module(to_nchw(x)).last_hidden_state
    model = small(kind, num_registers=3)
    for tensors in (saved_by(module), state_of(module)):
        tokens = quick_jit(model.apply)(load_vit(tensors, model), x)
        assert_close(tokens.patch_tokens, expected[:, 4:], "tokens")
        assert_close(tokens.class_token, expected[:, 0], "class token")


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_file_with_its_own_periods_and_masked_biases(kind):
    module, x = reference(kind), normal(2, 32, 20, 3, seed=0)
    tensors = authors_names(state_of(module), np.random.default_rng(0))
    rope = module.rope_embeddings
    model = small(kind, num_registers=3)
    before = rope.inv_freq.clone()
    exact = (1 / before).numpy()
    rounded = exact.astype(ml_dtypes.bfloat16).astype(np.float32)
    seen = []
    try:
        for periods in (exact, rounded):
            rope.inv_freq.copy_(1 / torch.tensor(periods))
            with torch.no_grad():
                expected = module(to_nchw(x)).last_hidden_state[:, 4:]
            variables = load_vit(tensors | {"rope_embed.periods": periods}, model)
            tokens = quick_jit(model.apply)(variables, x).patch_tokens
            assert_close(tokens, expected, "tokens")
            seen.append(tokens)
    finally:
        rope.inv_freq.copy_(before)
    assert np.abs(seen[0] - seen[1]).max() > 1e-4  # a reader of the wrong ones is seen


def test_the_loop_over_blocks_gives_the_same():
    model, x = small("plain"), normal(1, 16, 16, 3, seed=0)
    variables = model.init(jax.random.key(0), x)
    expected = model.apply(variables, x).patch_tokens
    assert_close(model.clone(scan=True).apply(variables, x).patch_tokens, expected, "tokens", 1e-5)


def test_a_period_of_zero_is_named():
    tensors = authors_names(state_of(reference("plain")), np.random.default_rng(0))
    with pytest.raises(UserError, match="'rope_embed.periods' has a period that is not above 0"):
        load_vit(tensors | {"rope_embed.periods": np.zeros(4, np.float32)},
                 small("plain", num_registers=3))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dinov3-b", dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                          intermediate_size=3072)),
        ("dinov3-splus", dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
                              intermediate_size=1536, use_gated_mlp=True)),
        ("dinov3-hplus", dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20,
                              intermediate_size=5120, use_gated_mlp=True)),
        ("dinov3-7b", dict(hidden_size=4096, num_hidden_layers=40, num_attention_heads=32,
                           intermediate_size=8192, use_gated_mlp=True)),
    ],
)  # fmt: skip
def test_published_sizes(name, config):
    config = transformers.DINOv3ViTConfig(
        **config, patch_size=16, num_register_tokens=4, key_bias=True
    )
    with torch.device("meta"):
        module = transformers.DINOv3ViTModel(config)
    model = create_vit(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    expected = sum(p.numel() for p in module.parameters()) - config.hidden_size  # the mask token
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
    assert model.grid(256) == 16
