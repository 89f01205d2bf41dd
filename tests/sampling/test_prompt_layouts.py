"""Images for prompts lie where the scorers of benchmarks look for them."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from repae_jax.errors import UserError
from repae_jax.sampling.layouts import LAYOUTS, read_prompts
from repae_jax.sampling.prompts import describe_prompts, make_prompt_folder

GENEVAL = [
    {
        "tag": "single_object", "prompt": "a photo of a bench",
        "include": [{"class": "bench", "count": 1}],
    },
    {
        "tag": "position", "prompt": "a photo of a dog right of a tie",
        "include": [
            {"class": "tie", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
    },
]  # fmt: skip
MJHQ = {"0a1": {"category": "animals", "prompt": "a dog"}, "0b": {"category": "art", "prompt": "x"}}
FILES = {
    "geneval": "\n".join(map(json.dumps, GENEVAL)),
    "dpg": json.dumps({"COCO_1": "two dogs", "partiprompts12": "a cat"}),
    "genai": json.dumps(["a", "b"]),
    "coco": json.dumps(["a", {"caption": "b", "id": 4}]),
    "mjhq": json.dumps(MJHQ),
    "flat": "first\n\nsecond, caf\u00e9\n",
}
WRITTEN = {
    "geneval": ["00000/metadata.jsonl", "00000/samples/00003.png", "00001/samples/00000.png"],
    "dpg": ["COCO_1.png", "partiprompts12.png"],
    "genai": ["00000.jpeg", "00001.jpeg", "index_to_prompt.json"],
    "coco": ["000000.png", "000001.png", "prompts.jsonl"],
    "mjhq": ["animals/0a1.jpg", "art/0b.jpg"],
    "flat": ["00000_00.png", "00001_00.png", "prompts.jsonl"],
}


def images_of(prompt, count):
    rng = np.random.default_rng(len(prompt.text))
    return rng.integers(0, 255, (count, 8, 8, 3), np.uint8)


@pytest.fixture(params=LAYOUTS)
def written(request, tmp_path):
    """(name, layout, prompts, the folder with their images)."""
    path, layout = tmp_path / "prompts", LAYOUTS[request.param]
    path.write_text(FILES[request.param], "utf-8")
    prompts, folder = read_prompts(request.param, path), tmp_path / "images"
    for prompt in prompts:
        assert not layout.is_written(folder, prompt, layout.images)
        layout.write(folder, prompt, images_of(prompt, layout.images))
        assert layout.is_written(folder, prompt, layout.images)
    for name, content in layout.listing(prompts).items():
        (folder / name).write_bytes(content)
    return request.param, layout, prompts, folder


def test_files_have_the_names_that_scorers_know(written):
    name, _, prompts, folder = written
    assert len(prompts) == 2
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(WRITTEN[name]) <= found


def test_scorers_read_what_was_written(written):
    """As GenEval's evaluate_images.py, DPG's crops, and index_to_prompt.json do."""
    name, _, prompts, folder = written
    if name == "geneval":
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())
        for own, line, prompt in zip(folders, GENEVAL, prompts, strict=True):
            assert json.loads((own / "metadata.jsonl").read_text()) == line
            for number, image in enumerate(images_of(prompt, 4)):
                read = np.asarray(Image.open(own / "samples" / f"{number:05d}.png"))
                np.testing.assert_array_equal(read, image)
    if name == "dpg":
        for prompt in prompts:
            whole = Image.open(folder / f"{prompt.name}.png")
            assert whole.size == (16, 16)
            places = [(0, 0), (8, 0), (0, 8), (8, 8)]
            for (x, y), image in zip(places, images_of(prompt, 4), strict=True):
                crop = np.asarray(whole.crop((x, y, x + 8, y + 8)))
                np.testing.assert_array_equal(crop, image)
    if name == "genai":
        listing = json.loads((folder / "index_to_prompt.json").read_text())
        assert listing == {"00000": "a", "00001": "b"}
    if name in ("coco", "flat"):
        lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
        assert [line["prompt"] for line in lines] == [prompt.text for prompt in prompts]


def test_genais_own_file_has_entries(tmp_path):
    content = {"00007": {"id": "00007", "prompt": "a cat"}, "00012": {"prompt": "a dog"}}
    (tmp_path / "genai_image.json").write_text(json.dumps(content))
    prompts = read_prompts("genai", tmp_path / "genai_image.json")
    assert [(prompt.name, prompt.text) for prompt in prompts] == [
        ("00007", "a cat"), ("00012", "a dog"),
    ]  # fmt: skip


BAD = [
    ("geneval", '{"prompt": "x"}', "line 1: .*tag"),
    ("geneval", "{", "line 1 is damaged"),
    ("geneval", json.dumps(GENEVAL[0] | {"include": [{"class": "a", "count": 0}]}), "count"),
    ("dpg", '["a"]', "is a list, but DPG-Bench's scorer knows its prompts by their ids"),
    ("dpg", '{"a/b": "x"}', "names no file"),
    ("dpg", '{"..": "x"}', "names no file"),
    ("dpg", '{"a.b": "x"}', "names no file"),  # the scorer takes the id up to the first dot
    ("dpg", '{"a": ""}', "has 0 bytes"),
    ("dpg", '{"a": "x", "A": "y"}', "'A' more than once"),
    ("genai", '["a", 3]', "is 3: give the prompt as text"),
    ("genai", "3", "give a list"),
    ("coco", '{"a": "x"}', "must be a valid list"),
    ("coco", "[]", "at least 1"),
    ("mjhq", '{"a": {"prompt": "x"}}', "category is missing"),
    ("mjhq", '{"a": {"prompt": "x", "category": "../y"}}', "names no file"),
    ("dpg", '{"Con": "x"}', "names no file"),  # a device of Windows
    ("dpg", '{"a ": "x"}', "names no file"),  # Windows drops the space
    ("mjhq", '{"a": {"prompt": "x", "category": "aux"}}', "names no file"),
    ("coco", r'["a", "b \ud800"]', r"\[1\] has a character that is none"),
    ("geneval", "\n\n{", "line 3 is damaged"),
    ("flat", "a\n\n" + "\u00e9" * 40_000, "line 3 has 80,000 bytes"),
    ("flat", "\n \n", "holds no prompts"),
    ("flat", '{"a": "a disc"}', "as JSON does: name its --layout"),
    ("flat", "\n[\n", "as JSON does: name its --layout"),
    ("dpg", '{"a": "x", "a": "y"}', "the key 'a' more than once"),
    ("genai", '{"1": {"prompt": "x", "prompt": "y"}}', "the key 'prompt' more than once"),
    ("geneval", '{"tag": "colors", "tag": "counting"}', "the key 'tag' more than once"),
    ("flat", "x" * 70_000, "70,000 bytes"),
]


@pytest.mark.parametrize(("layout", "content", "message"), BAD)
def test_another_file_is_named(layout, content, message, tmp_path):
    (tmp_path / "prompts").write_text(content, "utf-8")
    with pytest.raises(UserError, match=message):
        read_prompts(layout, tmp_path / "prompts")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pipe_is_no_file_of_prompts(layout, tmp_path):
    """Nobody writes to it, so whoever reads it waits."""
    os.mkfifo(tmp_path / "prompts")
    with pytest.raises(UserError, match="it is no file"):
        read_prompts(layout, tmp_path / "prompts")


def test_the_entries_that_files_keep_belong_to_what_was_asked_for(tmp_path):
    """GenEval's metadata and MJHQ's categories decide what scorers read."""
    changed = json.loads(FILES["geneval"].splitlines()[0])
    changed["include"][0]["count"] = 3
    others = {
        "geneval": FILES["geneval"].replace(FILES["geneval"].splitlines()[0], json.dumps(changed)),
        "mjhq": FILES["mjhq"].replace("animals", "food"),
    }
    for layout, content in others.items():
        asked = []
        for text in (FILES[layout], content):
            (tmp_path / "prompts").write_text(text)
            prompts = read_prompts(layout, tmp_path / "prompts")
            asked.append(describe_prompts(layout, prompts, 1))
        assert asked[0] != asked[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_without_its_end_is_made_again(layout, tmp_path):
    (tmp_path / "prompts").write_text(FILES[layout])
    prompt = read_prompts(layout, tmp_path / "prompts")[0]
    row, images = LAYOUTS[layout], np.zeros((LAYOUTS[layout].images, 32, 32, 3), np.uint8)
    row.write(tmp_path, prompt, images)
    assert row.is_written(tmp_path, prompt, row.images)
    path = tmp_path / row.paths(prompt, row.images)[0]
    for content in (path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        assert not row.is_written(tmp_path, prompt, row.images)


@pytest.mark.parametrize("name", ["x.png", "x.npz", "/"])
def test_a_folder_has_the_name_of_a_folder(name, tmp_path):
    (tmp_path / "prompts").write_text("a disc")
    prompts = read_prompts("flat", tmp_path / "prompts")
    path = pathlib.Path(name) if name == "/" else tmp_path / name
    with pytest.raises(UserError, match="--output"):
        make_prompt_folder(path, "flat", prompts, None, (32, 32, 3))


def test_this_folder_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "prompts").write_text("a disc")
    prompts = read_prompts("flat", tmp_path / "prompts")
    monkeypatch.chdir(tmp_path)
    folder = make_prompt_folder(pathlib.Path("."), "flat", prompts, None, (32, 32, 3))
    assert folder.description == tmp_path.with_name(f"{tmp_path.name}.json")


def test_only_line_feeds_end_a_line(tmp_path):
    text = "\ufeffone\u2028\x85line\r\nanother\x0b one"
    (tmp_path / "prompts").write_bytes(text.encode())
    prompts = read_prompts("flat", tmp_path / "prompts")
    assert [prompt.text for prompt in prompts] == ["one\u2028\x85line", "another\x0b one"]
    (listing,) = LAYOUTS["flat"].listing(prompts).values()
    lines = [json.loads(line) for line in listing.decode().splitlines()]
    assert [line["prompt"] for line in lines] == [prompt.text for prompt in prompts]


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "prompts").write_bytes(b"a \xff")
    with pytest.raises(UserError, match="is no UTF-8 text"):
        read_prompts("flat", tmp_path / "prompts")


def test_a_layout_of_one_image_takes_no_more(tmp_path):
    (tmp_path / "prompts").write_text(FILES["coco"])
    (prompt, _) = read_prompts("coco", tmp_path / "prompts")
    with pytest.raises(UserError, match="one image a prompt, not 2"):
        LAYOUTS["coco"].write(tmp_path, prompt, images_of(prompt, 2))
    with pytest.raises(UserError, match="use one of geneval, dpg"):
        read_prompts("webpage", tmp_path / "prompts")
