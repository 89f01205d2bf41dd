"""Captions in packed shards: `prepare` writes them, and the packed source gives them back."""

import pickle

import numpy as np
import pytest
from captioned import TEXTS, caption_config, jpeg, write_captioned, write_tar
from packing import content

from repae_jax.cli import main
from repae_jax.data.caption_texts import captions_in
from repae_jax.data.packed import open_packed
from repae_jax.data.prepare import prepare
from repae_jax.data.shards import PackedRecords
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError


def pack(source, output, **options):
    return prepare(source, output, **{"resolution": 16, "per_shard": 2, **options})


def packed(folder):
    return open_source(caption_config("packed", folder), "train")


def expected():
    return [text if isinstance(text, str) else tuple(text) for text in TEXTS[:3]] + ["one of one"]


def test_every_caption_comes_back(tmp_path):
    folder = write_captioned(tmp_path / "pictures")
    manifest = pack(f"captions:{folder}", tmp_path / "packed")
    assert manifest["made"]["captions"] is True
    assert (manifest["made"]["source"], manifest["num_classes"]) == ("captions", 1)
    source, original = packed(tmp_path / "packed"), open_source(
        caption_config("captions", folder), "train"
    )  # fmt: skip
    assert [source[i]["caption"] for i in range(len(source))] == expected()
    firsts = ["a red disc", "two rings", "a star", "one of one"]
    assert [source.caption(i) for i in range(4)] == firsts
    assert [original.caption(i) for i in range(4)] == firsts
    assert [pickle.loads(pickle.dumps(source)).caption(i) for i in range(4)] == firsts
    for index in range(4):
        assert source[index]["caption"] == original[index]["caption"]
        np.testing.assert_array_equal(source[index]["image"], original[index]["image"])
    assert str(tmp_path) not in (tmp_path / "packed" / "manifest.json").read_text()


def test_tars_are_packed_without_what_is_broken(tmp_path):
    members = {
        "a.jpg": jpeg(1), "a.txt": b"one", "b.jpg": jpeg(2), "c.jpg": jpeg(3), "c.txt": b" ",
        "d.jpg": jpeg(4), "d.txt": "zwölf".encode(),
    }  # fmt: skip
    write_tar(tmp_path / "tars" / "0.tar", members)
    whole = write_tar(tmp_path / "tars" / "1.tar", {"e.jpg": jpeg(5), "e.txt": b"five"})
    whole.write_bytes(whole.read_bytes().partition(b"five")[0])  # cut within e.txt
    name = f"tars:{tmp_path / 'tars'}"
    with pytest.raises(UserError, match=r"picture at byte \d+ has no txt.*--on-bad-image=skip"):
        pack(name, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    skipped = pack(name, tmp_path / "packed", on_bad_image="skip")["skipped"]
    source = packed(tmp_path / "packed")
    assert [source[i]["caption"] for i in range(len(source))] == ["one", "zwölf"]
    b, e, damage, c = skipped  # what the index lacks, then what cannot be decoded
    assert b.startswith("0.tar, picture at byte ")
    assert e.startswith("1.tar, picture at byte ")
    assert damage == "1.tar, from its damage on"
    assert c.startswith("0.tar, picture at byte ")
    assert len({b, c}) == 2


def test_described_images_are_packed_by_the_command(tmp_path, capsys):
    words = ["prepare", "described:5", str(tmp_path / "packed"), "--resolution", "16"]
    assert main([*words, "--workers", "0", "--quiet"]) == 0
    assert "5 records of 1 classes" in capsys.readouterr().out
    source = packed(tmp_path / "packed")
    original = open_source(caption_config("described", "", name="5"), "train")
    assert [source[i]["caption"] for i in range(5)] == [original.caption(i) for i in range(5)]
    assert main(["prepare", "--verify", str(tmp_path / "packed"), "--quiet"]) == 0


def test_a_second_call_with_another_caption_is_refused(tmp_path):
    folder = write_captioned(tmp_path / "pictures")
    pack(f"captions:{folder}", tmp_path / "packed")
    before = content(tmp_path / "packed")
    pack(f"captions:{folder}", tmp_path / "packed")
    assert content(tmp_path / "packed") == before
    write_captioned(folder, ["another", *TEXTS[1:]])
    with pytest.raises(UserError, match="was begun with other images: captions: "):
        pack(f"captions:{folder}", tmp_path / "packed")
    assert content(tmp_path / "packed") == before


def test_data_without_captions_have_neither_entry_nor_method(tmp_path):
    made = pack("scenes:3", tmp_path / "packed")["made"]
    assert "captions" not in made
    (first, *_) = PackedRecords(tmp_path / "packed")
    assert set(first) == {"image", "label", "name"}
    source = open_packed(caption_config("packed", tmp_path / "packed"), "train")
    assert source.caption is None
    assert set(source[0]) == {"image", "label"}


@pytest.mark.parametrize("record", [{}, {"caption": b"bytes"}, {"caption/1": "second"}])
def test_a_record_without_its_caption_is_named(record):
    with pytest.raises(UserError, match="record 3: damaged, it has no caption"):
        captions_in(record, "record 3")
