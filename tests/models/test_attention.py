"""Which kernel attention takes, and that it gives what torch gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import assert_close, normal

from repae_jax.models import layers
from repae_jax.models.layers import attend, attention_kernel, has_cudnn_attention

SHAPE = (2, 16, 4, 72)  # SiT-XL's head dimension
MASK = (np.arange(16) < np.array([[16], [5]]))[:, None, None]
on_gpu = pytest.mark.skipif(not has_cudnn_attention(), reason="needs an NVIDIA GPU")


def values_and_gradients(dtype, mask=None):
    """attend's output and the gradients of a weighted sum of it, float32, for random inputs."""
    q, k, v, weights = (normal(*SHAPE, seed=seed) for seed in range(4))

    def weighted(q, k, v):
        out = attend(*(x.astype(dtype) for x in (q, k, v)), mask).astype(jnp.float32)
        return (out * weights).sum(), out

    gradients, out = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)
    return (out, *gradients)


def torch_values_and_gradients(mask=None):
    """The same by torch, float32."""
    q, k, v, weights = (torch.tensor(normal(*SHAPE, seed=seed)) for seed in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    heads_first = (x.transpose(1, 2) for x in inputs)
    masked = {} if mask is None else {"attn_mask": torch.tensor(mask)}
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, **masked).transpose(1, 2)
    (out * weights).sum().backward()
    return (out, *(x.grad for x in inputs))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all keys", "masked"])
def test_agrees_with_torch(mask):
    theirs = torch_values_and_gradients(mask)
    for name, a, b in zip("oqkv", values_and_gradients(jnp.float32, mask), theirs, strict=True):
        assert_close(a, b, name)


@on_gpu
@pytest.mark.parametrize("mask", [None, MASK], ids=["all keys", "masked"])
def test_the_fused_kernel_agrees_with_torch_in_float32(mask):
    theirs = torch_values_and_gradients(mask)
    for name, a, b in zip("oqkv", values_and_gradients(jnp.bfloat16, mask), theirs, strict=True):
        b = b.detach().numpy()
        assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 1e-4), pytest.param(jnp.bfloat16, 2e-2, marks=on_gpu)],
)
def test_masked_attention_in_groups_agrees_with_torch(dtype, tolerance):
    q, k, v = (normal(2, 7, heads, 16, seed=seed) for seed, heads in enumerate((4, 2, 2)))
    mask = np.tri(7, dtype=bool) & (np.arange(7) < np.array([[5], [7]]))[:, None, None]
    heads_first = (torch.tensor(x).transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=torch.tensor(mask), enable_gqa=True
    )
    actual = jax.jit(attend)(*(jnp.asarray(x, dtype) for x in (q, k, v)), mask)
    assert_close(actual.astype(jnp.float32), expected.transpose(1, 2), "attended", tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_query_without_a_key_gives_finite_values(dtype):
    x = jnp.asarray(normal(1, 6, 2, 16, seed=0), dtype)
    out = jax.jit(attend)(x, x, x, jnp.zeros((1, 1, 6, 6), bool))
    assert np.isfinite(out.astype(jnp.float32)).all()


@pytest.mark.parametrize(
    ("dtype", "dim", "gpu", "expected"),
    [
        (jnp.bfloat16, 72, True, "cudnn"),
        (jnp.float16, 128, True, "cudnn"),
        (jnp.bfloat16, 72, False, "xla"),
        (jnp.float32, 72, True, "xla"),
        (jnp.bfloat16, 12, True, "xla"),  # 8 must divide it
        (jnp.bfloat16, 512, True, "xla"),  # a VAE's
    ],
)
def test_takes_the_fused_kernel_where_it_serves(monkeypatch, dtype, dim, gpu, expected):
    taken = []
    monkeypatch.setattr(layers, "has_cudnn_attention", lambda: gpu)
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *_, mask, implementation: taken.append(implementation),
    )
    x = jnp.zeros((1, 2, 1, dim), dtype)
    attend(x, x, x)
    assert taken == [expected]


@pytest.mark.parametrize(
    ("tokens", "keys", "expected"), [(4, 6, "cudnn"), (3, 6, "xla"), (4, 5, "xla")]
)
def test_the_fused_kernel_takes_a_mask_for_even_lengths(monkeypatch, tokens, keys, expected):
    taken = []

    def attention(q, k, v, implementation, mask):
        taken.append((implementation, mask.shape))
        return q

    monkeypatch.setattr(layers, "has_cudnn_attention", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    q, k = (jnp.zeros((2, length, 1, 8), jnp.bfloat16) for length in (tokens, keys))
    attend(q, k, k, jnp.ones((2, 1, 1, keys), bool))
    assert taken == [(expected, (2, 1, tokens, keys))]


def test_a_program_can_be_told_which_kernel(monkeypatch):
    """As for a device that is not there, or to count operations; `jit` tells the two apart."""
    taken = []

    def attention(q, k, v, mask, implementation):
        taken.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    step = jax.jit(lambda x: attend(x, x, x))
    x = jnp.zeros((1, 2, 1, 8), jnp.bfloat16)
    for kernel in ("cudnn", "xla", "cudnn"):
        with attention_kernel(kernel):
            step(x)
    assert taken == ["cudnn", "xla"]


def test_attention_without_a_key_is_zero_and_so_are_its_gradients():
    q, k, v = (normal(2, 3, 2, 8, seed=seed) for seed in range(3))
    mask = np.array([[True, False, True], [False] * 3])[:, None, None]
    gradients = jax.grad(lambda *qkv: attend(*qkv, mask).sum(), (0, 1, 2))(q, k, v)
    for array in (attend(q, k, v, mask), *gradients):
        assert not np.asarray(array[1]).any()
    expected = attend(q[:1], k[:1, ::2], v[:1, ::2])
    np.testing.assert_allclose(attend(q, k, v, mask)[:1], expected, atol=1e-6)
