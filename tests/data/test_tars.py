"""Tars of pictures with captions: the index beside WebDataset's own reader, and damaged tars."""

import io
import pathlib
import pickle
import tarfile
import time
import types

import numpy as np
import pytest
from PIL import Image

from repae_jax.data import tars
from repae_jax.data.pipeline import train_batches
from repae_jax.data.sources import open_source
from repae_jax.data.tar_headers import PICTURES, rows_of
from repae_jax.data.tars import open_tars
from repae_jax.errors import BadImage, UserError


def picture(seed, format="JPEG", size=(20, 24)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write(path, members, *, end=True):
    """Members are (name, bytes); without `end` the archive lacks its last blocks."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        place = tar.offset
    if not end:
        with open(path, "r+b") as file:
            file.truncate(place)
    return place


def is_whole(row):
    return row.picture_size >= 0 and row.caption_size >= 0


def config(path, **keys):
    given = dict(source="tars", path=str(path), resolution=16, num_classes=1, exif=False)
    return types.SimpleNamespace(**given | dict(on_bad_image="error") | keys)


MEMBERS = [
    ("a/1.jpg", picture(1)),
    ("a/1.txt", b" a red disc \n"),
    ("a/2.txt", "caf\u00e9".encode()),
    ("a/2.PNG", picture(2, "PNG")),
    ("a/3.json", b"{}"),
    ("a/3.webp", picture(3, "WEBP")),
    ("a/3.txt", b"three"),
    ("__index__/x.txt", b"meta"),
    ("noextension", b"x"),
    ("b/1.jpg", picture(4)),
    ("b/1.txt", b"another folder, the same name"),
]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "0.tar", MEMBERS)
    write(tmp_path / "1.tar", [("b/1.jpg", picture(5)), ("b/1.txt", b"over the border")])
    return tmp_path


def test_samples_are_those_of_webdataset(folder):
    webdataset = pytest.importorskip("webdataset")
    theirs = webdataset.WebDataset(
        [str(folder / "0.tar"), str(folder / "1.tar")], shardshuffle=False
    )
    expected = [sample for sample in theirs if "txt" in sample]
    source = open_tars(config(folder), "train")
    assert len(source) == len(expected) == 5
    for row, sample in zip(source.rows, expected, strict=True):
        data = pathlib.Path(source.tars[row[0]]).read_bytes()
        (own,) = (sample[key] for key in PICTURES if key in sample)
        assert data[row[1] : row[1] + row[2]] == own
        assert data[row[3] : row[3] + row[4]] == sample["txt"]


def test_elements_have_picture_and_caption(folder):
    source = open_source(config(folder), "train")
    texts = [source[i]["caption"] for i in range(len(source))]
    assert texts == [
        "a red disc", "caf\u00e9", "three", "another folder, the same name", "over the border",
    ]  # fmt: skip
    assert source[0]["image"].shape == (16, 16, 3)
    assert (source[0]["image"] != source[3]["image"]).any()
    assert source[0]["label"] == 0


def test_the_index_is_kept_and_found_again(folder, monkeypatch):
    first = open_tars(config(folder), "train")
    assert len(list(folder.glob(".tars-*.npy"))) == 1
    monkeypatch.setattr(tars, "rows_of", lambda *_: pytest.fail("it is read anew"))
    again = open_tars(config(folder), "train")
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.fingerprint() == again.fingerprint()
    monkeypatch.undo()
    write(folder / "1.tar", [("b/1.jpg", picture(6)), ("b/1.txt", b"changed, and longer" * 40)])
    changed = open_tars(config(folder), "train")
    assert changed.fingerprint() != first.fingerprint()
    assert changed[4]["caption"].startswith("changed")


def test_a_folder_that_cannot_be_written_serves_too(folder, monkeypatch):
    def refuse(path):
        raise UserError("there is no room")

    monkeypatch.setattr(tars, "replacing", refuse)
    assert len(open_tars(config(folder), "train")) == 5


def test_another_index_is_refused(folder):
    open_tars(config(folder), "train")
    (path,) = folder.glob(".tars-*.npy")
    rows = np.load(path)
    wrong = rows.copy()
    wrong[0, 2] = 1 << 40
    archive = io.BytesIO()
    np.savez(archive, rows)
    header = path.read_bytes().replace(b"(", b" ", 1)  # numpy's parser raises a TokenError
    damaged = (b"", b"x" * 300, path.read_bytes()[:150], b"PK\3\4" * 9, archive.getvalue(), header)
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="the index of the tars beside it, is damaged"):
            open_tars(config(folder), "train")
    outside = [rows.copy() for _ in range(3)]
    for array, column, value in zip(outside, (0, 1, 3), (-1, -1, 2**63 - 1), strict=True):
        array[0, column] = value
    for array in (wrong, rows[:, :3], rows.astype(np.float32), rows - 5, *outside):
        np.save(path, array)
        with pytest.raises(UserError, match="is damaged"):
            open_tars(config(folder), "train")


FAULTS = {
    "no caption": ([*MEMBERS[:2], ("c.jpg", picture(1)), *MEMBERS[2:4]], "has no txt beside it"),
    "no picture": ([*MEMBERS[:2], ("c.txt", b"x"), *MEMBERS[2:4]], "has no picture beside it"),
    "a key of two dots": (
        [*MEMBERS[:2], ("c.d.jpg", picture(1)), ("c.d.txt", b"x"), *MEMBERS[2:4]],
        "has two dots in its name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_incomplete_samples_are_named_or_left_out(fault, tmp_path, caplog):
    members, message = FAULTS[fault]
    write(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=message + ".*on_bad_image=skip"):
        open_tars(config(tmp_path), "train")
    listing = tmp_path / "bad_images.txt"
    skip = config(tmp_path, on_bad_image="skip")
    source = open_source(skip, "train", bad_images=listing)
    assert not listing.exists()  # nothing is written before the first image is read
    assert [source[i]["caption"] for i in range(2)] == ["a red disc", "caf\u00e9"]
    assert len(source) == 2
    (line,) = listing.read_text().splitlines()
    assert line.startswith(f"{tmp_path}/0.tar, ")


def test_further_pictures_of_a_sample_are_no_fault(tmp_path):
    more = [("a/1.seg.png", picture(3, "PNG")), ("a/1.tags.txt", b"x"), *MEMBERS[2:4]]
    write(tmp_path / "0.tar", [*MEMBERS[:2], *more])
    source = open_tars(config(tmp_path), "train")
    assert [source[i]["caption"] for i in range(len(source))] == ["a red disc", "caf\u00e9"]
    assert source.left_out == ()


def test_many_faults_are_listed_up_to_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "_LISTED", 2)
    write(tmp_path / "0.tar", [*MEMBERS[:2], *((f"{n}.txt", b"x") for n in range(5))])
    left_out = open_tars(config(tmp_path, on_bad_image="skip"), "train").left_out
    assert [name.rpartition(", ")[2].partition(" at ")[0] for name in left_out[:2]] == ["txt"] * 2
    assert left_out[2:] == ("3 more samples and tars",)


def test_a_repeated_extension_begins_a_sample(tmp_path):
    twice = [("a.jpg", picture(1)), ("a.txt", b"x"), ("a.jpg", picture(2)), ("a.txt", b"y")]
    write(tmp_path / "0.tar", twice)
    assert [is_whole(row) for row in rows_of(tmp_path / "0.tar")] == [True, True]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.83])
def test_a_cut_tar_is_named_or_used_up_to_the_cut(cut, tmp_path):
    end = write(tmp_path / "0.tar", MEMBERS)
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: int(cut * end)])
    write(tmp_path / "1.tar", MEMBERS[:2])
    with pytest.raises(UserError, match=r"0\.tar"):
        open_tars(config(tmp_path), "train")
    source = open_tars(config(tmp_path, on_bad_image="skip"), "train")
    elements = [source[i] for i in range(len(source))]
    assert elements[-1]["caption"] == "a red disc"


def test_a_tar_that_is_cut_between_two_files_is_named(tmp_path):
    write(tmp_path / "0.tar", MEMBERS[:4], end=False)
    with pytest.raises(UserError, match="is damaged"):
        open_tars(config(tmp_path), "train")
    assert len(open_tars(config(tmp_path, on_bad_image="skip"), "train")) == 2


def header(name, size, kind=tarfile.REGTYPE):
    """A header whose size field holds any number, also a negative one."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    first = b"\x80" if size >= 0 else b"\xff"
    block[124:136] = first + (size % 256**11).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def content(data):
    return data + bytes(-len(data) % 512)


def long_name(name):
    return header("././@LongLink", len(name), tarfile.GNUTYPE_LONGNAME) + content(name)


def extended(record):
    text = b"%d " % (len(record) + 3) + record  # of two digits
    return header("x", len(text), tarfile.XHDTYPE) + content(text)


SPARSE = extended(b"GNU.sparse.realsize=9\n") + header("b.jpg", 4) + content(b"data")
DAMAGED = {
    **{f"size {n} of type {t.decode()}": header("b.jpg", n, t)
       for n in (-1024, -(2**70), 2**40, 2**62, 2**70) for t in (b"0", b"L", b"x", b"Z")},
    "long names in a row": long_name(b"z") * 3000,
    "a sparse file": SPARSE + header("b.txt", 1) + content(b"x"),
    "a sparse header cut short": header("b.jpg", 4, tarfile.GNUTYPE_SPARSE)[:400],
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_headers_that_ask_for_anything_end_their_tar(what, tmp_path):
    path = tmp_path / "0.tar"
    end = write(path, MEMBERS[:2])
    path.write_bytes(path.read_bytes()[:end] + DAMAGED[what] + bytes(1024))
    assert [is_whole(row) for row in rows_of(path)][:1] == [True]
    assert not is_whole(list(rows_of(path))[-1])
    source = open_tars(config(tmp_path, on_bad_image="skip"), "train")
    assert [source[i]["caption"] for i in range(len(source))] == ["a red disc"]


def test_a_name_of_many_folders_takes_no_time(tmp_path):
    path = tmp_path / "0.tar"
    end = write(path, MEMBERS[:2])
    data = path.read_bytes()[:end] + long_name(b"a/" * 100_000) + header("x", 0) + bytes(1024)
    path.write_bytes(data)
    started = time.monotonic()
    assert [is_whole(row) for row in rows_of(path)] == [True]
    assert time.monotonic() - started < 5


def test_other_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar files"):
        open_tars(config(tmp_path), "train")
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match="is damaged"):
        open_tars(config(tmp_path), "train")
    write(tmp_path / "0.tar", [("a.json", b"{}")])
    with pytest.raises(UserError, match="hold no sample"):
        open_tars(config(tmp_path), "train")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", picture(1)), ("a.txt", b" \n")], "its caption is empty"),
        ([("a.jpg", picture(1)), ("a.txt", b"x \xff")], "no UTF-8 .*at byte 2"),
        ([("a.jpg", picture(1)), ("a.txt", b"word " * 20_000)], "100,000 bytes, more than"),
        ([("a.jpg", picture(1)[:90]), ("a.txt", b"x")], "not a readable image"),
    ],
)
def test_bad_samples_are_skipped_or_named(members, message, tmp_path):
    write(tmp_path / "0.tar", [*members, ("b.jpg", picture(2)), ("b.txt", b"good")])
    with pytest.raises(BadImage, match=message):
        open_source(config(tmp_path), "train")[0]
    listing = tmp_path / "skipped.txt"
    skip = config(tmp_path, on_bad_image="skip")
    source = open_source(skip, "train", bad_images=listing)
    assert source[0]["caption"] == "good"
    assert "picture at byte 512" in listing.read_text()


def lengths(caption):
    return {"ids": np.array([len(caption)], np.int32)}


def test_batches_have_tokens_in_place_of_captions(folder):
    source = pickle.loads(pickle.dumps(open_source(config(folder), "train")))
    for tokenize, key in ((None, set()), (lengths, {"ids"})):
        batches = train_batches(source, batch_size=5, seed=0, tokenize=tokenize)
        batch = next(batches)
        assert set(batch) == {"image", "label"} | key
        batches.close()
    expected = sorted(len(source[i]["caption"]) for i in range(5))
    assert sorted(batch["ids"][:, 0].tolist()) == expected


def test_mirrored_images_have_no_captions(folder):
    source = open_source(config(folder), "train")
    with pytest.raises(UserError, match="config.data.flip is True, but a mirrored image"):
        train_batches(source, batch_size=5, seed=0, tokenize=lengths, flip=True)
