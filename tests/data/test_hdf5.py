import json
import logging
import pickle
import sys

import numpy as np
import pytest
from parity import ORIGINAL, SKIP_REASON, original_module
from pictures import data_config, encoded, random_picture

from repae_jax.data.pipeline import train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError

h5py = pytest.importorskip("h5py")

# Not in the order of their names, and labels not in the order of images.
NAMES = ["00001/img00010003.png", "00000/img00000002.png", "00000/img00000001.png", "x/a.npy"]
LABELS = [2, 0, 1, 1]


def content(name, seed, size=16):
    image = random_picture(size, size, seed=seed)
    if name.endswith(".npy"):
        return np.asarray(image).transpose(2, 0, 1)
    # as a numpy byte string, which is how the original stores it
    return np.array(encoded(image, "PNG", compress_level=0), dtype="S")


def write_hdf5(folder, names=NAMES, labels=LABELS, **replaced):
    """The two files that the original's preprocessing writes; `replaced` are other contents."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [[name, label] for name, label in zip(names, labels, strict=True) if label is not None]
    metadata = replaced.get("metadata", json.dumps({"labels": pairs}).encode())
    with h5py.File(folder / "images.h5", "w") as file:
        for seed, name in enumerate(dict.fromkeys(names)):
            file.create_dataset(name, data=replaced.get("image", content(name, seed)))
        file.create_dataset("dataset.json", data=np.array(metadata, dtype="S"))
    everything = ["00000", "dataset.json", *names, "00001", "x"]  # groups are listed as well
    (folder / "images_h5.json").write_text(json.dumps(replaced.get("listing", everything)))


def config(folder, **values):
    return data_config("hdf5", **{"path": folder, "resolution": 16, "num_classes": 3, **values})


def test_images_and_labels_are_in_the_order_of_the_sorted_names(tmp_path):
    write_hdf5(tmp_path)
    source = open_source(config(tmp_path), "train")
    assert source.files == tuple(sorted(NAMES))
    assert (len(source), source.num_classes, source.name) == (4, 3, str(tmp_path))
    for index, name in enumerate(sorted(NAMES)):
        element = source[index]
        number = NAMES.index(name)
        expected = np.asarray(random_picture(16, 16, seed=number))
        np.testing.assert_array_equal(element["image"], expected)
        assert element["image"].dtype == np.uint8
        assert element["label"] == LABELS[number]
        assert element["label"].dtype == np.int32
    assert source.image_name(0) == f"{tmp_path / 'images.h5'}, 00000/img00000001.png"


@pytest.mark.skipif(not ORIGINAL, reason=SKIP_REASON)
def test_images_and_labels_are_what_the_original_reads(tmp_path):
    write_hdf5(tmp_path)
    theirs = original_module("dataset.py").CustomINH5Dataset(str(tmp_path))
    ours = open_source(config(tmp_path), "train")
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        image, label = theirs[index]
        np.testing.assert_array_equal(ours[index]["image"].transpose(2, 0, 1), image.numpy())
        assert ours[index]["label"] == label


@pytest.mark.parametrize("stored_as", ["string", "bytes"])
def test_other_ways_to_store_bytes_are_read(tmp_path, stored_as):
    image = random_picture(16, 16)
    data = encoded(image, "WEBP", lossless=True) + b"\0"  # must survive: numpy would strip it
    stored = np.frombuffer(data, np.uint8) if stored_as == "bytes" else np.array(data, "S")
    if stored_as == "string":
        stored = np.array(data, dtype=h5py.string_dtype("utf-8", len(data)))
    write_hdf5(tmp_path, ["a.webp"], [0], image=stored)
    source = open_source(config(tmp_path, num_classes=1), "train")
    np.testing.assert_array_equal(source[0]["image"], np.asarray(image))


def test_every_process_opens_the_file_for_itself(tmp_path):
    write_hdf5(tmp_path)
    source = open_source(config(tmp_path), "train")
    first = source[3]["image"]
    copy = pickle.loads(pickle.dumps(source))  # with its file open
    np.testing.assert_array_equal(copy[3]["image"], first)
    batches = train_batches(source, batch_size=4, seed=0, workers=1)
    assert sorted(next(batches)["label"]) == [0, 1, 1, 2]
    batches.close()


def test_splits_have_folders_of_their_own(tmp_path):
    write_hdf5(tmp_path / "train")
    write_hdf5(tmp_path / "val", NAMES[:2], [1, 0])
    assert len(open_source(config(tmp_path), "train")) == 4
    assert len(open_source(config(tmp_path), "heldout")) == 2
    with pytest.raises(UserError, match="no test folder of images.h5"):
        open_source(config(tmp_path), "test")


@pytest.mark.parametrize(("given", "classes"), [(None, 3), (3, 3), (1000, 1000)])
def test_the_file_does_not_say_how_many_classes_there_are(tmp_path, given, classes):
    write_hdf5(tmp_path)
    assert open_source(config(tmp_path, num_classes=given), "train").num_classes == classes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 2}, r"img00010003.png: label 2 is not in 0..1"),
        (
            {"resolution": 32},
            r"1.png has 16 x 16 pixels: set --config.data.resolution=16",
        ),
        ({"path": "nowhere"}, r"config.data.path is 'nowhere', which is no folder"),
    ],
)
def test_another_configuration_is_named(tmp_path, values, message):
    write_hdf5(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(config(tmp_path, **values), "train")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"labels": [2, -1, 1, 1]}, r"img00000002.png: label -1 is not in 0..2"),
        ({"labels": [2, None, 1, 1]}, r"dataset.json: the label of 00000/img00000002.png is None"),
        ({"labels": [2, 0, 0.5, 1]}, r"the label of 00000/img00000001.png is 0.5"),
        ({"labels": [2, 10**30, 1, 1]}, r"the label of 00000/img00000002.png is 10000000000000"),
        ({"metadata": b'{"labels": null}'}, r"dataset.json: not .*TypeError"),
        ({"metadata": b"{"}, r"dataset.json: not .*JSONDecodeError"),
        ({"metadata": b'{"labels": [["x/a.npy", 1], ["x/a.npy", 1]]}'}, r"x/a.npy more than once"),
        ({"listing": [*NAMES, NAMES[1]]}, r"h5.json: names 00000/img00000002.png more than once"),
        ({"listing": {"a.png": 1}}, r"h5.json: not a list of names"),
        ({"listing": ["00000", "dataset.json"]}, r"h5.json: names no images"),
        ({"names": ["a.png"], "labels": [0], "listing": ["a.png", "b.png"]}, r"label of b.png"),
    ],
)
def test_damaged_lists_are_named(tmp_path, written, message):
    write_hdf5(tmp_path, **written)
    with pytest.raises(UserError, match=message):
        open_source(config(tmp_path), "train")


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    write_hdf5(tmp_path)
    text = (tmp_path / "images_h5.json").read_text()
    (tmp_path / "images_h5.json").write_text(text, "utf-8-sig")
    assert len(open_source(config(tmp_path), "train")) == 4


def test_names_that_are_no_pictures_are_said(tmp_path, caplog):
    write_hdf5(tmp_path, listing=["00000", "x", "dataset.json", *NAMES, "x/b.gif", "x/c.mpg"])
    with caplog.at_level(logging.WARNING):
        assert open_source(config(tmp_path), "train").files == tuple(sorted(NAMES))
    assert "images_h5.json: 2 left out: 1 .gif (x/b.gif), 1 .mpg (x/c.mpg); pict" in caplog.text


@pytest.mark.parametrize("nested", ["images_h5.json", "dataset.json"])
def test_lists_that_are_nested_without_end_are_damaged(tmp_path, nested):
    deep = "[" * 100_000 + "]" * 100_000
    write_hdf5(tmp_path, **({"metadata": deep.encode()} if nested == "dataset.json" else {}))
    if nested == "images_h5.json":
        (tmp_path / nested).write_text(deep)
    with pytest.raises(UserError, match=f"{nested}: not "):
        open_source(config(tmp_path), "train")


def test_an_image_that_is_only_in_the_lists_is_named(tmp_path):
    write_hdf5(tmp_path)
    with h5py.File(tmp_path / "images.h5", "a") as file:
        del file["00001/img00010003.png"]
    source = open_source(config(tmp_path), "train")
    with pytest.raises(UserError, match=r"images.h5, 00001/img00010003.png: not in the file"):
        source[2]


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no images.h5"):
        open_source(config(tmp_path), "train")
    write_hdf5(tmp_path)
    whole = (tmp_path / "images.h5").read_bytes()
    (tmp_path / "images.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"images.h5: not a readable HDF5 file"):
        open_source(config(tmp_path), "train")
    (tmp_path / "images_h5.json").write_text("[")
    with pytest.raises(UserError, match=r"images_h5.json: not JSON"):
        open_source(config(tmp_path), "train")
    (tmp_path / "images_h5.json").unlink()
    with pytest.raises(UserError, match=r"has no images_h5.json"):
        open_source(config(tmp_path), "train")


def test_without_h5py_the_way_out_is_named(tmp_path, monkeypatch):
    write_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py.*pip install h5py"):
        open_source(config(tmp_path), "train")
