"""Folders of CLIP that cannot score images: one line names the thing and the way out."""

import json

import pytest
import transformers
from clip_folders import clip_tokenizer, reconfigure, write_clip
from safetensors.torch import load_file, save_file

from repae_jax.errors import UserError
from repae_jax.evaluation.clip_score import CLIPScorer


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path)
    return tmp_path


def refused(folder):
    with pytest.raises(UserError) as caught:
        CLIPScorer(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def rewrite(folder, change):
    file = folder / "model.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("kept", "absent"),
    [
        (("vision_model.", "visual_"), "holds no text tower, no projection of texts; name a fold"),
        (("text_",), "holds no image tower, no projection of images; name a folder of"),
        (("vision_model.", "text_"), "holds no projection of images; name a folder of"),
    ],
)
def test_a_tower_alone_is_refused(kept, absent, folder):
    rewrite(folder, lambda tensors: {k: v for k, v in tensors.items() if k.startswith(kept)})
    assert f"model.safetensors {absent}" in refused(folder)


def test_the_configuration_of_a_tower_is_refused(folder):
    transformers.CLIPVisionConfig().save_pretrained(folder)
    assert "model_type is 'clip_vision_model', not 'clip'; name a folder of" in refused(folder)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("text_config", {"hidden_size": 40}, "text tower is 32 wide, but config.json says 40"),
        ("vision_config", {"hidden_size": 48}, "image tower is 24 wide, but config.json says 48"),
        ("vision_config", {"num_attention_heads": 5}, "hidden_size is 24, .* no multiple of 5"),
        ("text_config", {"num_attention_heads": 5}, "hidden_size is 32, .* no multiple of 5"),
        ("vision_config", {"patch_size": 3}, "image_size is 20, which is no multiple of 3"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is 'relu', and read are quick_gelu"),
        ("vision_config", {"image_size": "20"}, "vision_config.image_size is '20': "),
        ("text_config", {"num_hidden_layers": 3}, "depth is 2 .the encoder's 3."),
        ("vision_config", {"num_hidden_layers": 1}, "unexpected tensor 'vision_model.encoder"),
    ],
)
def test_a_configuration_of_another_model_is_refused(section, keys, message, folder):
    reconfigure(folder, **{section: keys})
    with pytest.raises(UserError, match=message):
        CLIPScorer(folder)
    refused(folder)


def test_embeddings_of_two_widths_are_refused(folder):
    name = "text_projection.weight"
    rewrite(folder, lambda tensors: tensors | {name: tensors[name][:20]})
    said = refused(folder)
    assert "visual_projection.weight to 28 and text_projection.weight to 20 dimensions" in said


def test_a_tokenizer_without_begin_and_end_is_refused(folder):
    tokenizer = clip_tokenizer()
    tokenizer.post_processor = None
    tokenizer.save(str(folder / "tokenizer.json"))
    said = "turns the empty caption into [], but the text encoder was trained with [257, 258]"
    assert said in refused(folder)


def test_a_tokenizer_of_more_tokens_is_refused(folder):
    tokenizer = clip_tokenizer()
    tokenizer.add_tokens(["disc"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "259 rows: name the tokenizer that belongs to the encoder" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(file, folder):
    (folder / file).unlink()
    assert f"{file} not found; name a folder of transformers' CLIPModel" in refused(folder)


def test_a_file_of_weights_is_no_folder(folder):
    file = folder / "model.safetensors"
    assert f"{file} is a file: name its folder" in refused(file)


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text(json.dumps([1]))
    assert "config.json" in refused(folder)
