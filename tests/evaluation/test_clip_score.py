"""CLIP score: equal to transformers' CLIPModel and image processor on pictures of several sizes."""

import numpy as np
import pytest
import torch
import transformers
from clip_folders import LENGTH, SIDE, reconfigure, write_clip
from PIL import Image

from repae_jax.evaluation.clip_score import CLIPScorer
from repae_jax.evaluation.prompted_images import PromptedImages
from repae_jax.evaluation.resized_images import resize_shorter

SIZES = [(20, 20), (64, 64), (41, 30), (33, 78), (9, 14), (20, 27)]
PROMPTS = ["ab", "A red DISC", "", "two crosses left of a ring, and much more", "é", "a" * 13]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("images"), []
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        files.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(files[-1])
    return PromptedImages(str(folder), files, PROMPTS)


def cosines(model, folder, images):
    """transformers' cosine of each image and its prompt."""
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
    )
    pictures = [Image.open(file) for file in images.files]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    tokens = tokenizer(
        images.prompts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(tokens["input_ids"], pixels, tokens["attention_mask"])
    return (output.image_embeds * output.text_embeds).sum(-1).double().numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_score_is_transformers(activation, images, tmp_path):
    act = {"hidden_act": activation}
    model = write_clip(tmp_path, text=act, vision=act)
    expected = cosines(model, tmp_path, images)
    assert expected.min() < 0 < expected.max()
    scorer = CLIPScorer(tmp_path)
    for number, cosine in enumerate(expected):  # one by one: each of the sizes and prompts
        one = PromptedImages("one", [images.files[number]], [PROMPTS[number]])
        score = scorer(one, batch_size=4)
        assert score == pytest.approx(100 * max(cosine, 0), rel=1e-5, abs=1e-5)
    score = scorer(images, batch_size=4)  # with a padded batch
    assert score == pytest.approx(100 * expected.clip(min=0).mean(), rel=1e-5)


def test_old_configurations_mean_the_highest_id_by_the_end_of_text(images, tmp_path):
    model = write_clip(tmp_path, text={"bos_token_id": 0, "eos_token_id": 2})
    expected = cosines(model, tmp_path, images).clip(min=0).mean()
    assert CLIPScorer(tmp_path)(images, batch_size=6) == pytest.approx(100 * expected, rel=1e-5)


def test_keys_that_the_configuration_leaves_out_have_transformers_values(images, tmp_path):
    heads = {"num_attention_heads": 12}
    wide = {"hidden_size": 48, "num_attention_heads": 12}
    model = write_clip(tmp_path, text={"hidden_size": 32, "num_attention_heads": 8}, vision=wide)
    reconfigure(
        tmp_path,
        text_config=dict.fromkeys(("num_attention_heads", "hidden_act", "layer_norm_eps")),
        vision_config=dict.fromkeys((*heads, "hidden_act", "layer_norm_eps", "num_channels")),
    )
    expected = cosines(model, tmp_path, images).clip(min=0).mean()
    assert CLIPScorer(tmp_path)(images, batch_size=6) == pytest.approx(100 * expected, rel=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (640, 427), (300, 301), (225, 1000), (50, 70)])
def test_resizing_is_transformers(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    processor = transformers.CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    expected = processor(images=Image.fromarray(pixels))["pixel_values"][0]
    np.testing.assert_array_equal(resize_shorter(pixels, 224), expected.transpose(1, 2, 0))


def test_long_lines_of_pixels_are_refused():
    with pytest.raises(ValueError, match="1 x 65 pixels are over 64 times as long as wide"):
        resize_shorter(np.zeros((65, 1, 3), np.uint8), 8)
