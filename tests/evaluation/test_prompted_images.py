"""Images of prompts: found in every layout that names its prompts, and what is none is said."""

import json

import numpy as np
import pytest

from repae_jax.errors import UserError
from repae_jax.evaluation.prompted_images import find_prompted
from repae_jax.sampling.layouts import LAYOUTS, Prompt

TEXTS = ["a photo of a bench", "two red discs", "a ring left of a cross"]
IMAGE = np.zeros((1, 8, 8, 3), np.uint8)


def write(folder, layout, images=1):
    """A folder as `generate` writes it for three prompts."""
    layout = LAYOUTS[layout]
    prompts = [Prompt(text, f"{number:05d}", {"prompt": text}) for number, text in enumerate(TEXTS)]
    for prompt in prompts:
        layout.write(folder, prompt, IMAGE.repeat(images, 0))
    for path, content in layout.listing(prompts).items():
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("layout", "images", "first"),
    [
        ("flat", 2, "00000_00.png"),
        ("coco", 1, "00000.png"),
        ("genai", 1, "00000.jpeg"),
        ("geneval", 2, "00000/samples/00000.png"),
    ],
)
def test_prompts_are_found_as_layouts_write_them(layout, images, first, tmp_path):
    found = find_prompted(write(tmp_path, layout, images))
    assert found.files[0] == str(tmp_path / first)
    assert found.prompts == [text for text in TEXTS for _ in range(images)]
    assert len(set(found.files)) == 3 * images
    some = found.first(2)
    assert (some.files, some.prompts) == (found.files[:2], found.prompts[:2])
    with pytest.raises(UserError, match=r"holds \d images, 9 are requested"):
        found.first(9)


@pytest.mark.parametrize("layout", ["dpg", "mjhq"])
def test_layouts_without_prompts_are_refused(layout, tmp_path):
    images = 4 if layout == "dpg" else 1
    prompt = Prompt(TEXTS[0], "00000", "animals")
    LAYOUTS[layout].write(tmp_path, prompt, IMAGE.repeat(images, 0))
    message = r"holds no prompts: name a folder of images with prompts\.jsonl, index_to_prompt"
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file.npz"):
        with pytest.raises(UserError, match=message):
            find_prompted(path)


def test_a_prompt_without_image_is_named(tmp_path):
    write(tmp_path, "geneval")
    (tmp_path / "00001/samples/00000.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 prompts of \*/metadata.jsonl .*'00001': write"):
        find_prompted(tmp_path)


def test_pictures_of_no_prompt_are_left_out_with_a_warning(tmp_path, capsys):
    write(tmp_path, "geneval")
    (tmp_path / "00000/samples/00000.png").rename(tmp_path / "00000/samples/1.png")
    (tmp_path / "00001/grid.png").write_bytes((tmp_path / "00001/samples/00000.png").read_bytes())
    found = find_prompted(tmp_path)
    assert [path.rpartition("/")[2] for path in found.files] == ["1.png", "00000.png", "00000.png"]
    assert "1 pictures are of no prompt of */metadata.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "00000"}', r"prompts.jsonl, line 1: prompt is missing"),
        ("\nno json", r"prompts.jsonl, line 2 is damaged, no JSON"),
        (json.dumps({"name": "00000", "prompt": ""}), "prompt of 00000 has 0 bytes"),
        (json.dumps({"name": "00000", "prompt": "\ud800"}), "has a character that is none"),
        ("", "holds no prompts"),
    ],
)
def test_damaged_lists_of_prompts_are_said(content, message, tmp_path):
    write(tmp_path, "flat")
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        find_prompted(tmp_path)
    assert str(tmp_path) in str(caught.value)
