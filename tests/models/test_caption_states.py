"""Captions as a condition: encoded at the length of the longest, with the same states."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from parity import assert_close, normal, quick_jit

from repae_jax.models.text_encoders.base import encode_captions, initial_variables, null_states
from repae_jax.models.text_encoders.causal_lm import CausalLM
from repae_jax.models.text_encoders.clip_text import CLIPText

SIZES = dict(vocabulary=50, dim=16, depth=1, num_heads=2, mlp_hidden=16)
OF_LM = dict(**SIZES, num_kv_heads=1, head_dim=8, length=100, null_ids=(3,), pad_id=7)
LM = CausalLM(**OF_LM)


def variables_of(encoder):
    variables = initial_variables(encoder, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.asarray(normal(*leaf.shape, seed=leaf.size)), variables)


@pytest.mark.parametrize(("longest", "size"), [(0, 32), (1, 32), (32, 32), (33, 64), (97, 100)])
def test_the_longest_caption_decides(longest, size):
    variables = variables_of(LM)
    ids = np.random.default_rng(0).integers(0, 50, (3, 100)).astype(np.int32)
    length = np.array([longest, min(longest, 1), 0], np.int32)
    seen = []

    class Watched(CausalLM):
        @nn.compact
        def __call__(self, ids, mask):
            states = super().__call__(ids, mask)
            jax.debug.callback(lambda *_: seen.append(ids.shape[1]), states)
            return states

    watched = Watched(**OF_LM)
    found = quick_jit(lambda v, *rest: encode_captions(watched, v, *rest))(variables, ids, length)
    jax.effects_barrier()
    assert set(seen) == {size}
    mask = np.arange(100) < length[:, None]
    np.testing.assert_array_equal(found["mask"], mask)
    expected = quick_jit(LM.apply)(variables, ids, mask)
    np.testing.assert_allclose(found["tokens"], expected, rtol=1e-5, atol=1e-5)


def test_a_tower_whose_padding_counts_is_not_cropped():
    tower = CLIPText(**SIZES, length=80, projection=0, pad_id=1)
    variables = variables_of(tower)
    ids = np.full((2, 80), 1, np.int32)
    found = encode_captions(tower, variables, ids, np.array([1, 2], np.int32))
    expected = tower.apply(variables, ids, None)
    assert_close(found["tokens"], expected, "states", 1e-6)
    assert np.abs(np.asarray(found["tokens"][:, 50])).max() > 0.1


def test_the_empty_caption():
    variables = variables_of(LM)
    null = null_states(LM, variables)
    assert null["tokens"].shape == (100, 16)
    assert null["mask"].sum() == 1
    ids = np.array([[3]], np.int32)
    expected = LM.apply(variables, ids, np.ones((1, 1), bool))
    assert_close(null["tokens"][0], expected[0, 0], "the state of <bos>", 1e-6)
    without = LM.clone(null_ids=())
    assert not np.asarray(null_states(without, variables)["tokens"]).any()


def test_no_gradient_reaches_the_encoder():
    variables = variables_of(LM)
    ids, length = np.full((1, 100), 2, np.int32), np.array([5], np.int32)
    gradient = jax.grad(lambda v: encode_captions(LM, v, ids, length)["tokens"].sum())(variables)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
