"""Text encoders, state by state, against transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import assert_close, normal, quick_jit, relative_error, state_of
from torch_text import (
    CAUSAL_LMS,
    EOS,
    LENGTH,
    VOCABULARY,
    captions,
    causal_lm,
    clip_text,
    states_of,
)
from transformers.models.qwen3 import modeling_qwen3

from repae_jax.errors import UserError
from repae_jax.interop.text_encoder import load_text_encoder
from repae_jax.models.rotary import rotate_halves
from repae_jax.models.text_encoders.base import initial_variables
from repae_jax.models.text_encoders.causal_lm import whitening_of
from repae_jax.models.text_encoders.families import TEXT_ENCODERS

LENGTHS = (1, 5, LENGTH)


def loaded(pair):
    return load_text_encoder(state_of(pair.reference), pair.encoder)


def encode(encoder, variables, ids, mask, method=None):
    inputs = (ids,) if method else (ids, mask)
    return np.asarray(
        quick_jit(lambda v, *inputs: encoder.apply(v, *inputs, method=method))(variables, *inputs)
    )


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_states_equal_transformers(kind, scan):
    pair, (ids, mask) = causal_lm(kind), captions(*LENGTHS)
    states = encode(pair.encoder.clone(scan=scan), loaded(pair), ids, mask)
    assert states.dtype == np.float32
    assert_close(states[mask], states_of(pair.reference, ids, mask)[mask], kind)
    assert not states[~mask].any()


def test_whitened_states_vary_alike_in_all_directions():
    pair, (ids, mask) = causal_lm(CAUSAL_LMS[0]), captions(*LENGTHS)
    plain = encode(pair.encoder, loaded(pair), ids, mask)
    rng = np.random.default_rng(0)
    # two directions whose variance is a millionth of the others', as of words that the same follow
    spread = (
        rng.normal(size=(4000, pair.encoder.dim))
        * np.r_[1e-3, 1e-2, 1.0, [1.0] * 99][: pair.encoder.dim]
    )
    turn = np.linalg.qr(rng.normal(size=(pair.encoder.dim,) * 2))[0]
    whitening = whitening_of((spread @ turn + 7.0).astype(np.float32))
    whole = (spread @ turn + 7.0 - whitening["mean"]) @ whitening["matrix"]
    deviations = np.sqrt(np.linalg.eigvalsh(np.cov(whole.T)))
    np.testing.assert_allclose(deviations[2:], 1, atol=0.01)
    np.testing.assert_allclose(deviations[:2], [0.3, 0.95], atol=0.05)  # 1e-6 / (1e-6 + 1e-5)
    whitened = encode(
        pair.encoder.clone(whitened=True),
        {"params": {**loaded(pair)["params"], "whitening": whitening}}, ids, mask,
    )  # fmt: skip
    expected = (plain - whitening["mean"]) @ whitening["matrix"]
    assert_close(whitened[mask], expected[mask], "whitened", 1e-5)
    assert not whitened[~mask].any()


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_a_batch_cropped_to_its_longest_caption_has_the_same_states(kind):
    pair, (ids, mask) = causal_lm(kind), captions(1, 5)
    variables = loaded(pair)
    padded, cropped = (encode(pair.encoder, variables, ids[:, :n], mask[:, :n]) for n in (12, 5))
    assert_close(cropped, padded[:, :5], "cropped", 1e-6)


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_captions_padded_on_the_left_have_the_same_states_by_slot(kind):
    pair, (ids, mask) = causal_lm(kind), captions(*LENGTHS)
    left, left_mask = (
        np.stack([np.roll(row, LENGTH - n) for row, n in zip(rows, LENGTHS, strict=True)])
        for rows in (ids, mask)
    )
    variables = loaded(pair)
    right = encode(pair.encoder, variables, ids, mask)
    assert_close(right[mask], states_of(pair.reference, left, left_mask)[left_mask], "transformers")
    assert_close(right[mask], encode(pair.encoder, variables, left, left_mask)[left_mask], "ours")


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_the_ids_of_padded_positions_change_nothing(kind):
    pair, (ids, mask) = causal_lm(kind), captions(*LENGTHS)
    variables = loaded(pair)
    expected = encode(pair.encoder, variables, ids, mask)
    for other in (7, -1, 10 * VOCABULARY):
        np.testing.assert_array_equal(
            encode(pair.encoder, variables, np.where(mask, ids, other), mask), expected
        )


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_a_token_sees_no_later_token(kind):
    pair, (ids, mask) = causal_lm(kind), captions(LENGTH)
    variables = loaded(pair)
    changed = ids.copy()
    changed[:, 5] = (ids[:, 5] + 1) % VOCABULARY
    one, other = (encode(pair.encoder, variables, x, mask) for x in (ids, changed))
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).any(axis=(0, 2)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_an_empty_caption_has_states_of_zero_and_leaves_the_others_alone(dtype):
    pair, (ids, mask) = causal_lm("qwen3"), captions(0, 5)
    encoder, variables = pair.encoder.clone(dtype=dtype), loaded(pair)
    states = encode(encoder, variables, ids, mask)
    assert not states[0].any()
    assert_close(states[1:], encode(encoder, variables, ids[1:], mask[1:]), "beside it", 1e-6)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gemma", dict(norm_offset=0.0)),
        ("gemma", dict(scale_embedding=False)),
        ("gemma", dict(activation="silu")),
        ("gemma", dict(rope_base=1e6)),
        ("qwen3", dict(norm_offset=1.0)),
        ("qwen3", dict(scale_embedding=True)),
        ("qwen3", dict(qk_norm=False)),
        ("qwen3", dict(activation="tanh_gelu")),
        ("qwen3", dict(rope_base=1e4)),
    ],
)
def test_another_option_gives_other_states(kind, change):
    pair, (ids, mask) = causal_lm(kind), captions(LENGTH)
    states = encode(pair.encoder.clone(**change), loaded(pair), ids, mask)
    assert relative_error(states, states_of(pair.reference, ids, mask)) > 1e-3


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_the_last_states_are_those_behind_the_final_norm(kind):
    pair, (ids, mask) = causal_lm(kind), captions(LENGTH)
    entered = []
    pair.reference.norm.register_forward_pre_hook(lambda _, inputs: entered.append(*inputs))
    with torch.no_grad():
        output = pair.reference(torch.tensor(ids).long(), output_hidden_states=True)
    states = encode(pair.encoder, loaded(pair), ids, mask)
    assert len(output.hidden_states) == 3
    assert_close(states, output.hidden_states[-1], "the last of all hidden states")
    assert relative_error(states, entered[0]) > 0.1


def test_norms_of_queries_and_keys_come_before_the_rotation(monkeypatch):
    pair, (ids, mask) = causal_lm("qwen3"), captions(LENGTH)
    states = encode(pair.encoder, loaded(pair), ids, mask)
    rotate, norms = modeling_qwen3.apply_rotary_pos_emb, []
    for block in pair.reference.layers:
        attention = block.self_attn
        norms.append((attention.q_norm, attention.k_norm))
        attention.q_norm = attention.k_norm = torch.nn.Identity()
    behind = iter(norms)

    def rotate_then_norm(q, k, *tables):
        q_norm, k_norm = next(behind)
        q, k = rotate(q, k, *tables)
        return q_norm(q), k_norm(k)

    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", rotate_then_norm)
    other = states_of(pair.reference, ids, mask)
    assert next(behind, None) is None  # both blocks have called it
    assert relative_error(states, other) > 1e-3


def test_halves_turn_as_complex_numbers():
    x, base = normal(2, 7, 3, 16, seed=0), 1e4
    pairs = x[..., :8].astype(np.complex128) + 1j * x[..., 8:]
    turns = np.arange(7)[:, None, None] * base ** (-np.arange(8) / 8)
    expected = pairs * np.exp(1j * turns)
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    assert_close(rotate_halves(x, base), expected, "rotated", 1e-6)


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_weights_in_bfloat16_are_computed_with_in_the_type_of_the_products(kind):
    """The scale of embeddings among them: sqrt(32) is 5.6569, and in bfloat16 5.65625."""
    pair, (ids, mask) = causal_lm(kind), captions(*LENGTHS)
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), loaded(pair))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    for encoder in (pair.encoder, pair.encoder.clone(scan=True)):
        one, other = (encode(encoder, variables, ids, mask) for variables in (narrow, wide))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", [*CAUSAL_LMS, "clip"])
def test_half_precision_gives_float32_states_near_the_exact_ones(kind, dtype):
    pair = clip_text() if kind == "clip" else causal_lm(kind)
    variables, (ids, mask) = loaded(pair), captions(*LENGTHS)
    exact = encode(pair.encoder, variables, ids, mask)
    half = encode(pair.encoder.clone(dtype=dtype), variables, ids, mask)
    assert half.dtype == np.float32
    assert 0 < relative_error(half, exact) < 0.05


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clips_states_equal_transformers_at_all_positions(activation, scan):
    pair = clip_text("CLIPTextModel", hidden_act=activation)
    encoder = pair.encoder.clone(quick_gelu=activation == "quick_gelu", scan=scan)
    variables = loaded(pair)
    ids, mask = captions(*LENGTHS, length=16, pad=EOS)
    expected = states_of(pair.reference, ids, None)
    assert_close(encode(encoder, variables, ids, mask), expected, "states")
    other = encoder.clone(quick_gelu=activation != "quick_gelu")
    assert relative_error(encode(other, variables, ids, mask), expected) > 1e-3


def test_clips_padding_has_states_of_its_own_and_leaves_those_of_the_caption_alone():
    pair = clip_text()
    variables, (ids, mask) = loaded(pair), captions(*LENGTHS, length=16, pad=EOS)
    one, other = (
        encode(pair.encoder, variables, np.where(mask, ids, pad), mask) for pad in (EOS, 0)
    )
    np.testing.assert_array_equal(one[mask], other[mask])
    assert (one[~mask] != other[~mask]).any(axis=-1).all()


@pytest.mark.parametrize("eos", [EOS, 40, 2])
def test_clips_text_embedding_is_the_projected_end_of_text(eos):
    """transformers' rules: the first end of text, or for the id 2 the first highest id."""
    pair = clip_text(eos_token_id=eos)
    encoder = pair.encoder.clone(eos_id=None if eos == 2 else eos)
    ids, mask = captions(3, 7, 12, length=16, pad=0 if eos == 2 else eos)
    if eos != 2:
        ids = np.where(mask & (ids == eos), 5, ids)  # the first one is the padding's
    with torch.no_grad():
        output = pair.reference(torch.tensor(ids).long())
    variables = loaded(pair)
    embedding = encode(encoder, variables, ids, mask, "text_embedding")
    assert embedding.dtype == np.float32
    assert_close(embedding, output.text_embeds, "embedding")
    assert_close(encode(encoder, variables, ids, mask), output.last_hidden_state, "states")
    bare = clip_text("CLIPTextModel", eos_token_id=eos)
    with torch.no_grad():
        pooled = bare.reference(torch.tensor(ids).long()).pooler_output
    encoder = bare.encoder.clone(eos_id=encoder.eos_id)
    assert_close(encode(encoder, loaded(bare), ids, mask, "text_embedding"), pooled, "pooled")


def test_both_rules_of_the_end_agree_where_it_is_the_highest_id():
    pair, (ids, mask) = clip_text(), captions(3, 12, length=16, pad=EOS)
    variables = loaded(pair)
    one, other = (
        encode(pair.encoder.clone(eos_id=eos), variables, ids, mask, "text_embedding")
        for eos in (EOS, None)
    )
    np.testing.assert_array_equal(one, other)


def test_captions_beyond_clips_positions_are_refused():
    pair = clip_text()
    ids, mask = captions(17, length=17)
    with pytest.raises(UserError, match="captions of 17 tokens, but the text tower has 16"):
        pair.encoder.apply(loaded(pair), ids, mask)


def parameters(encoder):
    shapes = jax.eval_shape(lambda: initial_variables(encoder, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def preset(name):
    row = next(row for row in TEXT_ENCODERS.values() if name in row.presets)
    return row.build(**row.presets[name])


# The sizes of google/gemma-2b, Qwen/Qwen3-0.6B and the text tower of openai/clip-vit-large-patch14.
PUBLISHED = {
    "gemma-2b": (
        "GemmaModel",
        transformers.GemmaConfig(
            vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18,
            num_attention_heads=8, num_key_value_heads=1, head_dim=256,
        ),
        2_506_172_416,
    ),
    "qwen3-0.6b": (
        "Qwen3Model",
        transformers.Qwen3Config(
            vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        ),
        596_049_920,
    ),
    "clip-l-text": (
        "CLIPTextModelWithProjection",
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
        ),
        123_650_304,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    kind, config, count = PUBLISHED[name]
    assert parameters(preset(name)) == count
    with torch.device("meta"):
        theirs = getattr(transformers, kind)(config)
    assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize(
    ("name", "length", "crops", "pad", "null"),
    [
        ("gemma-2b", 256, True, 0, (2,)),
        ("qwen3-0.6b", 256, True, 151_643, ()),
        ("clip-l-text", 77, False, 49_407, (49_406, 49_407)),
    ],
)
def test_presets_know_how_their_captions_are_padded(name, length, crops, pad, null):
    encoder = preset(name)
    assert (encoder.length, encoder.crops) == (length, crops)
    assert (encoder.pad_id, encoder.null_ids) == (pad, null)


@pytest.mark.parametrize("kind", [*CAUSAL_LMS, "clip"])
def test_initial_norms_multiply_by_one(kind):
    """Gemma's weights are added to 1, and so begin as 0."""
    pair = clip_text() if kind == "clip" else causal_lm(kind)
    init = quick_jit(lambda key: initial_variables(pair.encoder, key))
    params = init(jax.random.key(0))["params"]
    scale = params["blocks_0"]["norm1"]["scale"]
    np.testing.assert_array_equal(scale, 0.0 if kind == "gemma" else 1.0)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("causal_lm", dict(num_kv_heads=3), r"num_kv_heads is 3, which does not divide the 4"),
        ("causal_lm", dict(head_dim=15), r"head_dim is 15: rotary positions need an even"),
        ("clip_text", dict(num_heads=5), r"hidden_size is 32: it must be divisible by the 5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(family, changes, message):
    pair = clip_text() if family == "clip_text" else causal_lm("qwen3")
    with pytest.raises(UserError, match=f"^config.text_encoder.{message}"):
        TEXT_ENCODERS[family].check(pair.encoder.clone(**changes), {}, "config.text_encoder")
