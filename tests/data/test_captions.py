"""Folders of pictures with captions, in a text beside each or in metadata.jsonl."""

import json
import time
import types

import numpy as np
import pytest
from PIL import Image

from repae_jax.data.captions import open_captioned
from repae_jax.data.sources import open_source
from repae_jax.data.tokens import Tokenize, grammar_tokenizer
from repae_jax.errors import BadImage, UserError


def write_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def config(path, **keys):
    given = dict(source="captions", path=str(path), resolution=16, num_classes=1, exif=False)
    return types.SimpleNamespace(**given | dict(on_bad_image="error") | keys)


def metadata(folder, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("a.jpg", "sub/b.png", "sub/c.webp")):
        write_picture(tmp_path / name, seed)
        (tmp_path / name).with_suffix(".txt").write_text(f" caption {seed}\n")
    return tmp_path


def test_texts_lie_beside_their_pictures(folder):
    source = open_source(config(folder), "train")
    assert [source[i]["caption"] for i in range(3)] == ["caption 0", "caption 1", "caption 2"]
    assert source[1]["image"].shape == (16, 16, 3)


def test_metadata_name_pictures_and_texts(folder):
    entries = [
        {"file_name": "sub/b.png", "text": "first"},
        {"file_name": "a.jpg", "text": "second", "more": 1},
    ]
    metadata(folder, *entries, "")
    source = open_source(config(folder), "train")
    assert [source[i]["caption"] for i in range(2)] == ["first", "second"]
    assert len(source) == 2
    plain = source.fingerprint()
    metadata(folder, entries[0], entries[1] | {"text": "another"})
    assert open_source(config(folder), "train").fingerprint() != plain


def test_metadata_may_have_several_captions_of_a_picture(folder):
    entry = {"file_name": "a.jpg", "text": ["first", " second ", "third"]}
    metadata(folder, entry, {"file_name": "sub/b.png", "text": ["alone"]})
    source = open_source(config(folder), "train")
    assert source[0]["caption"] == ("first", "second", "third")
    assert (source.caption(0), source[1]["caption"]) == ("first", "alone")
    plain = source.fingerprint()
    metadata(folder, entry | {"text": ["first", "second", "another"]})
    assert open_source(config(folder), "train").fingerprint()["captions"] != plain["captions"]
    metadata(folder, entry | {"text": ["first", ""]})
    with pytest.raises(BadImage, match=r"a\.jpg \(caption 2 of 2\): its caption is empty"):
        open_source(config(folder), "train")[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ('["a.jpg"]', r"line 2 is \['a.jpg'\]: each line is"),
        ('{"file_name": "a.jpg"}', "line 2 is"),
        ('{"file_name": "a.jpg", "text": 3}', "line 2 is"),
        ('{"file_name": "a.jpg", "text": []}', "line 2 is .*a list of several strings"),
        ('{"file_name": "a.jpg", "text": ["x", 3]}', "line 2 is"),
        ('{"file_name": "a.jpg", "text": {"x": "y"}}', "line 2 is"),
        ('{"file_name": "../a.jpg", "text": "x"}', "lies outside of the folder"),
        (r'{"file_name": "\ud800.jpg", "text": "x"}', "names no file"),
        (r'{"file_name": "\u0000.jpg", "text": "x"}', "names no file"),
        ('{"file_name": "", "text": "x"}', "names no file"),
        ('{"file_name": "/etc/a.jpg", "text": "x"}', "lies outside of the folder"),
        ('{"file_name": "sub/b.png", "text": "x"}', "'sub/b.png' more than once"),
        ('{"file_name": "./sub/b.png", "text": "x"}', "'sub/b.png' more than once"),
        ('{"file_name": "c.png", "text": "x", "text": "y"}', "the key 'text' more than once"),
    ],
)
def test_damaged_metadata_are_named(line, message, folder):
    metadata(folder, {"file_name": "sub/b.png", "text": "first"}, line)
    with pytest.raises(UserError, match=message):
        open_captioned(config(folder), "train")


def test_a_picture_that_ends_a_long_list_twice_is_found_at_once(tmp_path):
    names = [f"{min(number, 99_998)}.jpg" for number in range(100_000)]
    metadata(tmp_path, *({"file_name": name, "text": "x"} for name in names))
    started = time.monotonic()
    with pytest.raises(UserError, match="'99998.jpg' more than once"):
        open_captioned(config(tmp_path), "train")
    assert time.monotonic() - started < 20


def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    (folder / "a.txt").write_bytes("a red disc".encode("utf-8-sig"))
    assert open_source(config(folder), "train")[0]["caption"] == "a red disc"


def test_a_picture_without_a_caption_is_named_or_left_out_and_listed(folder):
    (folder / "a.txt").unlink()
    message = (
        r"a\.jpg has no caption: write it to a\.txt beside it.*--config.data.on_bad_image=skip"
    )
    with pytest.raises(UserError, match=message):
        open_captioned(config(folder), "train")
    skip, listing = config(folder, on_bad_image="skip"), folder / "bad_images.txt"
    source = open_source(skip, "train", bad_images=listing)
    assert len(source) == 2
    assert not listing.exists()  # nothing is written before the first image is read
    assert [source[i]["caption"] for i in range(2)] == ["caption 1", "caption 2"]
    assert listing.read_text() == f"{folder}/a.jpg\n"
    for name in ("sub/b.txt", "sub/c.txt"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="holds no pictures with captions"):
        open_source(skip, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x \xff", "is no UTF-8 .*at byte 2"),
        (b"longword " * 10_000, "has 65,537 bytes, more than"),
        (b" \n\t", "is empty"),
    ],
)
def test_texts_that_are_no_captions_are_named_or_skipped_and_listed(text, message, folder):
    (folder / "a.txt").write_bytes(text)
    with pytest.raises(BadImage, match=message):
        open_source(config(folder), "train")[0]
    listing = folder / "bad_images.txt"
    source = open_source(config(folder, on_bad_image="skip"), "train", bad_images=listing)
    assert source[0]["caption"] == "caption 1"
    assert listing.read_text() == f"{folder}/a.jpg\n"


def test_a_caption_of_ten_thousand_words_loses_its_end(folder):
    text = " ".join(["word"] * 10_000)
    (folder / "a.txt").write_text(text)
    source = open_source(config(folder), "train")
    assert source[0]["caption"] == text
    grammar_tokenizer().save(str(folder / "tokenizer.json"))
    tokens = Tokenize(str(folder / "tokenizer.json"), 24, 0)(source[0]["caption"])
    assert tokens["caption_length"] == 24
    assert tokens["caption_ids"].shape == (24,)


def test_an_empty_caption_is_named_or_skipped(folder):
    (folder / "a.txt").write_text("")
    with pytest.raises(BadImage, match="its caption is empty"):
        open_source(config(folder), "train")[0]
    assert open_source(config(folder, on_bad_image="skip"), "train")[0]["caption"] == "caption 1"


def test_folders_of_splits_are_found(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    for name in ("train", "val"):
        write_picture(root / name / "x.png", 1)
        (root / name / "x.txt").write_text(name)
    assert open_captioned(config(root), "train")[0]["caption"] == "train"
    assert open_captioned(config(root), "heldout")[0]["caption"] == "val"
    with pytest.raises(UserError, match="holds no pictures with captions"):
        open_captioned(config(tmp_path_factory.mktemp("empty")), "train")
