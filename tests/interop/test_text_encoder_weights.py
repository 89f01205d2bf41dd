"""Weights of text encoders, from transformers' files and back."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch_text import CAUSAL_LMS, PROJECTION, causal_lm, clip_text
from weight_files import assert_same_trees

from repae_jax.errors import UserError
from repae_jax.interop.files import read_stored, write_safetensors
from repae_jax.interop.text_encoder import (
    export_text_encoder,
    load_text_encoder,
    read_text_encoder,
)
from repae_jax.interop.text_encoder_configs import class_and_fields
from repae_jax.models.text_encoders.base import initial_variables

KINDS = (*CAUSAL_LMS, "clip")


def pair_of(kind, **changes):
    """With the published names: of the whole language model, or of the tower with projection."""
    return clip_text(**changes) if kind == "clip" else causal_lm(kind, head=True, **changes)


def saved(pair, folder, **options):
    """The folder that transformers writes, and the tensors in it."""
    pair.reference.save_pretrained(folder, **options)
    return folder, load_file(folder / "model.safetensors") if not options else {}


def rewrite(folder, change):
    """Change the tensors of a folder, as a function of their dict returns them."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def reconfigure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder, encoder):
    """The error's message, one line that names the folder."""
    with pytest.raises(UserError) as caught:
        read_text_encoder(folder, encoder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_bits_go_in_and_out(kind, dtype, tmp_path):
    pair = pair_of(kind)
    pair.reference.to(dtype)
    folder, theirs = saved(pair, tmp_path)
    variables = read_text_encoder(folder, pair.encoder)
    back = export_text_encoder(variables, pair.encoder)
    assert set(back) == set(theirs)
    stored = read_stored(folder / "model.safetensors")
    for name, array in stored.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_whitening_goes_in_and_out_and_belongs_to_its_encoder(tmp_path):
    pair = causal_lm(CAUSAL_LMS[0])
    whitened = pair.encoder.clone(whitened=True)
    variables = jax.tree.map(np.asarray, initial_variables(whitened, jax.random.key(0)))
    tensors = export_text_encoder(variables, whitened)
    assert_same_trees(load_text_encoder(tensors, whitened), variables)
    write_safetensors(str(tmp_path / "model.safetensors"), tensors)
    assert "whitened is True" in refused(tmp_path, pair.encoder)
    plain = {name: tensor for name, tensor in tensors.items() if "whitening" not in name}
    write_safetensors(str(tmp_path / "model.safetensors"), plain)
    assert "whitened is False" in refused(tmp_path, whitened)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_is_exported(kind, tmp_path):
    pair = pair_of(kind)
    folder, _ = saved(pair, tmp_path / "theirs")
    variables = jax.device_put(read_text_encoder(folder, pair.encoder))
    (tmp_path / "ours").mkdir()
    exported = export_text_encoder(jax.device_get(variables), pair.encoder)
    write_safetensors(tmp_path / "ours/model.safetensors", exported, {"format": "pt"})
    pair.reference.config.save_pretrained(tmp_path / "ours")
    opened, found = type(pair.reference).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    for (name, theirs), ours in zip(
        pair.reference.state_dict().items(), opened.state_dict().values(), strict=True
    ):
        assert torch.equal(theirs, ours), name


@pytest.mark.parametrize("kind", CAUSAL_LMS)
def test_a_language_model_is_read_with_and_without_prefix_and_head(kind, tmp_path):
    with_head = causal_lm(kind, head=True, tied=False)
    folder, tensors = saved(with_head, tmp_path / "with")
    assert "lm_head.weight" in tensors
    expected = read_text_encoder(folder, with_head.encoder)
    bare = causal_lm(kind)
    bare.reference.load_state_dict(with_head.reference.model.state_dict())
    folder, tensors = saved(bare, tmp_path / "without")
    assert "embed_tokens.weight" in tensors
    assert_same_trees(read_text_encoder(folder, bare.encoder), expected)
    wrapped = {f"module.model.{name}": tensor.numpy() for name, tensor in tensors.items()}
    assert_same_trees(load_text_encoder(wrapped, bare.encoder), expected)


def test_clips_text_tower_is_read_from_the_complete_clip_and_alone(tmp_path):
    complete = clip_text("CLIPModel")
    folder, tensors = saved(complete, tmp_path / "complete")
    assert {name.split(".")[0] for name in tensors} == {
        "logit_scale", "text_model", "text_projection", "vision_model", "visual_projection",
    }  # fmt: skip
    projected = read_text_encoder(folder, complete.encoder)
    assert projected["params"]["projection"]["kernel"].shape == (32, PROJECTION)
    alone = clip_text("CLIPTextModel")
    alone.reference.load_state_dict(complete.reference.text_model.state_dict())
    expected = {"params": {k: v for k, v in projected["params"].items() if k != "projection"}}
    assert_same_trees(read_text_encoder(folder, alone.encoder), expected)
    folder, tensors = saved(alone, tmp_path / "alone")
    assert "embeddings.token_embedding.weight" in tensors
    assert_same_trees(read_text_encoder(folder, alone.encoder), expected)
    assert "'text_projection.weight' is missing" in refused(folder, complete.encoder)


def test_tables_that_older_versions_saved_are_left_out(tmp_path):
    for kind, table in (
        ("gemma", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("clip", "text_model.embeddings.position_ids"),
    ):
        pair = pair_of(kind)
        folder, _ = saved(pair, tmp_path / kind)
        expected = read_text_encoder(folder, pair.encoder)
        rewrite(folder, lambda tensors, table=table: tensors | {table: torch.arange(4)})
        assert_same_trees(read_text_encoder(folder, pair.encoder), expected)


def test_files_shards_and_torchs_format_are_read(tmp_path):
    pair = pair_of("qwen3")
    folder, tensors = saved(pair, tmp_path / "one")
    expected = read_text_encoder(folder, pair.encoder)
    assert_same_trees(read_text_encoder(folder / "model.safetensors", pair.encoder), expected)
    shards, _ = saved(pair, tmp_path / "shards", max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert_same_trees(read_text_encoder(shards, pair.encoder), expected)
    index = shards / "model.safetensors.index.json"
    assert_same_trees(read_text_encoder(index, pair.encoder), expected)
    (tmp_path / "bin").mkdir()  # and without a config.json
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    assert_same_trees(read_text_encoder(tmp_path / "bin", pair.encoder), expected)


@pytest.mark.parametrize("kind", [*KINDS, "complete clip"])
def test_config_json_determines_the_fields(kind, tmp_path):
    pair = clip_text("CLIPModel") if kind == "complete clip" else pair_of(kind)
    folder, _ = saved(pair, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    found, fields = class_and_fields(config, source="it")
    assert found is type(pair.encoder)
    assert fields == {name: getattr(pair.encoder, name) for name in fields}
    sizes = {"vocabulary", "dim", "depth", "num_heads", "mlp_hidden", "norm_epsilon"}
    options = {"num_kv_heads", "head_dim", "norm_offset", "scale_embedding", "qk_norm"}
    options |= {"activation", "rope_base"}
    assert set(fields) == sizes | ({"length", "quick_gelu"} if "clip" in kind else options)


def test_the_configurations_of_the_hub_are_read():
    """As google/gemma-2b and Qwen/Qwen3-0.6B were published, by older versions of transformers."""
    gemma = {
        "model_type": "gemma", "hidden_act": "gelu", "rope_theta": 10000.0, "rope_scaling": None,
        "attention_bias": False, "head_dim": 256,
    }  # fmt: skip
    _, fields = class_and_fields(gemma, source="it")
    assert (fields["activation"], fields["rope_base"]) == ("tanh_gelu", 1e4)
    qwen = {
        "model_type": "qwen3", "hidden_act": "silu", "rope_theta": 1000000, "rope_scaling": None,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28,
    }  # fmt: skip
    _, fields = class_and_fields(qwen, source="it")
    assert (fields["activation"], fields["rope_base"]) == ("silu", 1e6)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3", dict(model_type="llama"), "model_type is 'llama'; text encoders are read of"),
        ("qwen3", dict(model_type="gemma"), "hidden_act is 'silu', and read are gelu"),
        ("qwen3", dict(hidden_size="32"), "hidden_size is '32': it must be a valid integer"),
        ("qwen3", dict(head_dim=8), r"head_dim is 8 (the encoder's 16); choose the arch"),
        ("qwen3", dict(num_attention_heads=8), "num_heads is 8 (the encoder's 4)"),
        ("qwen3", dict(rms_norm_eps=1e-5), "norm_epsilon is 1e-05 (the encoder's 1e-06)"),
        ("qwen3", dict(attention_bias=True), "attention_bias is True, which is not implemented"),
        ("qwen3", dict(use_sliding_window=True), "use_sliding_window is True, which is not"),
        ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        (
            "gemma",
            dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            "rope_base is 500000.0 (the encoder's 10000.0)",
        ),
        (
            "gemma",
            dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
            "rope_parameters.rope_type is 'yarn', which is not implemented; 'default' is",
        ),
        ("gemma", dict(hidden_act="relu"), "hidden_act is 'relu', and read are gelu, gelu_"),
        ("clip", dict(hidden_act="gelu"), "quick_gelu is False (the encoder's True)"),
        ("clip", dict(num_attention_heads=2), "num_heads is 2 (the encoder's 4)"),
        ("clip", dict(model_type="clip_vision_model"), "model_type is 'clip_vision_model'"),
        ("clip", dict(model_type="qwen3", hidden_act=None), "the weights of a causal language"),
    ],
)
def test_a_config_json_of_another_encoder_is_named(kind, changes, message, tmp_path):
    pair = pair_of(kind)
    folder, _ = saved(pair, tmp_path)
    reconfigure(folder, **changes)
    assert message in refused(folder, pair.encoder)


def without_config(folder):
    (folder / "config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("file", "kind", "message"),
    [
        ("clip", "qwen3", "the weights of CLIP's text tower, but the text encoder is a causal"),
        ("qwen3", "clip", "the weights of a causal language model, but the text encoder is CLIP's"),
        ("gemma", "qwen3", "another text encoder: qk_norm is False (the encoder's True); choose"),
        ("qwen3", "gemma", "another text encoder: qk_norm is True (the encoder's False); choose"),
    ],
)
def test_weights_of_another_encoder_are_named(file, kind, message, tmp_path):
    folder, _ = saved(pair_of(file), tmp_path)
    assert message in refused(without_config(folder), pair_of(kind).encoder)


def test_the_image_tower_and_unknown_weights_are_named(tmp_path):
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            image_size=8, patch_size=4,
        )
    )  # fmt: skip
    vision.save_pretrained(tmp_path / "vision")
    message = refused(without_config(tmp_path / "vision"), clip_text().encoder)
    assert "the weights of CLIP's image tower, but the text encoder is CLIP's text tower" in message
    (tmp_path / "other").mkdir()
    write_safetensors(tmp_path / "other/model.safetensors", {"w": np.zeros(3, np.float32)})
    message = refused(tmp_path / "other", pair_of("qwen3").encoder)
    assert "it has no tensor 'model.embed_tokens.weight' or 'embed_tokens.weight'" in message


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "qwen3",
            dict(dim=64, depth=3, vocabulary=65, mlp_hidden=64),
            "vocabulary is 64 (the encoder's 65), dim is 32 (the encoder's 64), depth is 2 (the "
            "encoder's 3), mlp_hidden is 48 (the encoder's 64); choose the arch",
        ),
        ("clip", dict(length=77), "length is 16 (the encoder's 77)"),
        ("clip", dict(projection=16), "tensor 'text_projection.weight' has shape (24, 32)"),
        (
            "gemma",
            dict(num_kv_heads=2),
            "tensor 'model.layers.0.self_attn.k_proj.weight' has shape (16, 32), the model needs",
        ),
    ],
)
def test_an_encoder_of_other_sizes_is_named(kind, changes, message, tmp_path):
    pair = pair_of(kind)
    folder, _ = saved(pair, tmp_path)
    assert message in refused(without_config(folder), pair.encoder.clone(**changes))


def lost(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def added(name, tensor):
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "qwen3",
            lost("model.layers.1.self_attn.k_norm.weight"),
            "tensor 'model.layers.1.self_attn.k_norm.weight' is missing",
        ),
        (
            "qwen3",
            lost("model.layers.0.mlp.gate_proj.weight"),
            "not the weights of a causal language model: tensor 'model.layers.0.mlp.gate_proj",
        ),
        (
            "gemma",
            added("model.layers.0.self_attn.q_proj.bias", torch.zeros(64)),
            "unexpected tensor 'model.layers.0.self_attn.q_proj.bias'",
        ),
        (
            "gemma",
            added("layers.0.input_layernorm.weight", torch.zeros(32)),
            "unexpected tensor 'layers.0.input_layernorm.weight'",
        ),
        (
            "gemma",
            added("embed_tokens.weight", torch.zeros(64, 32)),
            "more than one text encoder: 'embed_tokens.weight' and 'model.embed_tokens.weight'",
        ),
        (
            "gemma",
            added("model.norm.weight", torch.full((32,), float("nan"))),
            "tensor 'model.norm.weight' holds values that are not finite",
        ),
        (
            "gemma",
            added("model.norm.weight", torch.zeros(33)),
            "tensor 'model.norm.weight' has shape (33,), the model needs (32,)",
        ),
        (
            "gemma",
            added("model.embed_tokens.weight", torch.zeros(64)),
            "tensor 'model.embed_tokens.weight' has the shape (64,), not 2 axes",
        ),
        (
            "clip",
            lost("text_model.encoder.layers.0.self_attn.v_proj.bias"),
            "tensor 'text_model.encoder.layers.0.self_attn.v_proj.bias' is missing",
        ),
        (
            "clip",
            lost("text_projection.weight"),
            "tensor 'text_projection.weight' is missing",
        ),
    ],
)
def test_damaged_weights_are_named(kind, change, message, tmp_path):
    pair = pair_of(kind)
    folder, _ = saved(pair, tmp_path)
    rewrite(folder, change)
    assert message in refused(folder, pair.encoder)


def test_what_is_not_there_is_named(tmp_path):
    encoder = pair_of("qwen3").encoder
    assert "no such file or folder" in refused(tmp_path / "nowhere", encoder)
    assert "model.safetensors is missing: `python -m repae_jax" in refused(tmp_path, encoder)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert "is damaged, no JSON" in refused(tmp_path, encoder)
    (tmp_path / "config.json").unlink()
    assert "not a readable safetensors file" in refused(tmp_path, encoder)
