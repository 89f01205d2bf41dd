"""`prepare`: what is written, from each kind of source."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest
from packing import content
from PIL import Image, ImageOps
from preparing import FILES, LABELS, SIZE, cropped, opened, run

from repae_jax.data import prepare as module
from repae_jax.data.crop import rgb_square
from repae_jax.data.digits import load_digits_split
from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError

# --- what is written ---


@pytest.mark.parametrize("format", ["png", "webp", "raw"])
def test_lossless_records_are_the_cropped_images(pictures, tmp_path, format):
    run(pictures, tmp_path / "packed", format=format)
    records = PackedRecords(tmp_path / "packed")
    assert len(records) == len(FILES)
    for record, name, label in zip(records, FILES, LABELS, strict=True):
        assert set(record) == {"image", "label", "name"}
        assert record["name"] == name
        assert record["label"] == label
        if format == "raw":
            image = np.load(io.BytesIO(record["image"]), allow_pickle=False)
        else:
            image = opened(record)
            assert image.format == format.upper()
            assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), cropped(pictures / name))


def write_photo(root):
    """A smooth picture with coloured edges, which subsampling of colours would blur."""
    x, y = np.mgrid[0:1:64j, 0:1:64j]
    channels = [255 * x, 255 * (y > 0.5), 127 + 120 * np.sin(9 * x * y)]
    path = root / "colours" / "photo.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(path)
    return root


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_records_are_near_and_smaller_at_less_quality(tmp_path, format):
    source = write_photo(tmp_path / "pictures")
    errors, sizes = [], []
    for quality in (40, 95):
        output = tmp_path / f"packed{quality}"
        run(source, output, resolution=64, format=format, quality=quality)
        (record,) = PackedRecords(output)
        image = opened(record)
        assert image.format == format.upper()
        with Image.open(source / "colours" / "photo.png") as photo:
            difference = np.asarray(image).astype(float) - np.asarray(photo)
        errors.append(np.abs(difference).mean())
        sizes.append(len(record["image"]))
    assert sizes[0] < sizes[1]
    assert errors[1] < errors[0]
    assert errors[1] < 3


def test_jpeg_has_quality_95_and_keeps_the_resolution_of_colours(tmp_path):
    source = write_photo(tmp_path / "pictures")
    manifest = run(source, tmp_path / "packed", resolution=64, format="jpeg")
    (record,) = PackedRecords(tmp_path / "packed")
    assert manifest["made"]["quality"] == 95
    reference = io.BytesIO()
    with Image.open(source / "colours" / "photo.png") as photo:
        photo.save(reference, format="jpeg", quality=95, subsampling="4:4:4")
    np.testing.assert_array_equal(
        np.asarray(opened(record)), np.asarray(opened({"image": reference.getvalue()}))
    )


def test_the_manifest_says_how_it_was_made_but_not_where(pictures, tmp_path):
    manifest = run(pictures, tmp_path / "packed", format="webp", exif=True)
    names = "".join(f"{name}\0" for name in FILES).encode()
    assert {key: manifest[key] for key in ("kind", "count", "num_classes", "skipped")} == {
        "kind": "images",
        "count": 5,
        "num_classes": 3,
        "skipped": [],
    }
    assert manifest["classes"] == ["ant", "bird", "cat"]
    data = manifest["made"].pop("data")
    assert [row[:2] for row in data["classes"]] == [["ant", 1], ["bird", 2], ["cat", 2]]
    assert manifest["made"] == {
        "source": "folder",
        "name": "",
        "split": "train",
        "names_sha256": hashlib.sha256(names).hexdigest(),
        "resolution": SIZE,
        "format": "webp",
        "quality": None,
        "exif": True,
        "per_shard": 2,
        "source_count": 5,
    }
    assert not any(str(tmp_path).encode() in data for data in content(tmp_path / "packed").values())


def test_the_same_images_elsewhere_give_the_same_bytes(pictures, tmp_path):
    run(pictures, tmp_path / "packed")
    elsewhere = pictures.rename(tmp_path / "elsewhere")
    run(elsewhere, tmp_path / "again", workers=0)
    assert content(tmp_path / "again") == content(tmp_path / "packed")


def test_exif_orientation_is_applied_on_demand(tmp_path):
    path = tmp_path / "pictures" / "class" / "turned.png"
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, 2 * SIZE, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(path, exif=exif)
    stored = {}
    for apply in (False, True):
        run(tmp_path / "pictures", tmp_path / f"packed{apply}", exif=apply)
        (record,) = PackedRecords(tmp_path / f"packed{apply}")
        stored[apply] = np.asarray(opened(record))
    with Image.open(path) as image:
        turned = rgb_square(ImageOps.exif_transpose(image), SIZE)
    np.testing.assert_array_equal(stored[True], turned)
    np.testing.assert_array_equal(stored[False], cropped(path))
    assert (stored[True] != stored[False]).any()


def test_the_writer_is_small_to_send_and_says_the_same_elsewhere(pictures, tmp_path):
    """A worker gets it pickled: an open file or a lock in it would fail there."""
    config = module.types.SimpleNamespace(
        source="folder", path=str(pictures), name="", resolution=SIZE, num_classes=None
    )
    source = module.open_source(config, "train")
    writer = module._ImageWriter(source, "png", None, False)
    copies = writer, pickle.loads(pickle.dumps(writer))

    class Records(list):
        write = list.append

    written = [Records(), Records()]
    for copy, records in zip(copies, written, strict=True):
        copy(range(5), records)
    assert written[0] == written[1]
    assert len(written[0]) == 5


# --- sources ---


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_digits(tmp_path, split):
    manifest = run("digits", tmp_path / "packed", resolution=32, per_shard=1000, split=split)
    part = load_digits_split(split)
    records = PackedRecords(tmp_path / "packed")
    assert manifest["num_classes"] == 10
    assert [record["label"] for record in records] == part.labels.tolist()
    images = np.stack([np.asarray(opened(record)) for record in records])
    np.testing.assert_array_equal(images, part.images)


def test_a_split_of_a_folder(pictures, tmp_path):
    root = tmp_path / "splits"
    root.mkdir()
    pictures.rename(root / "val")
    manifest = run(root, tmp_path / "packed", split="heldout")
    assert manifest["count"] == len(FILES)
    assert manifest["made"]["split"] == "heldout"


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    names = [f"00000/img{number:08d}.png" for number in range(3)]
    labels = [2, 0, 1]
    with h5py.File(tmp_path / "images.h5", "w") as file:
        for name, image in zip(names, images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="png")
            file[name] = np.frombuffer(buffer.getvalue(), np.uint8)
        pairs = [[name, label] for name, label in zip(names, labels, strict=True)]
        file["dataset.json"] = np.frombuffer(json.dumps({"labels": pairs}).encode(), np.uint8)
    (tmp_path / "images_h5.json").write_text(json.dumps([*names, "dataset.json"]))
    manifest = run(f"hdf5:{tmp_path}", tmp_path / "packed", workers=2, per_shard=1)
    assert manifest["num_classes"] == 3
    assert str(tmp_path) not in (tmp_path / "packed" / "manifest.json").read_text()
    records = PackedRecords(tmp_path / "packed")
    for record, image, label in zip(records, images, labels, strict=True):
        np.testing.assert_array_equal(np.asarray(opened(record)), image)
        assert record["label"] == label
        assert str(tmp_path) not in record["name"]


def test_tfds_by_name_and_folder(tmp_path, monkeypatch):
    asked = []

    def stop(config, split, **_):
        asked.append((config.source, config.name, config.path, config.num_classes, split))
        raise UserError("enough")

    monkeypatch.setattr(module, "open_source", stop)
    for path in ("", "/data"):
        with pytest.raises(UserError, match="enough"):
            run("tfds:imagenet2012:5.1.0", tmp_path / "packed", path=path, split="test")
    name = "imagenet2012:5.1.0"
    assert asked == [("tfds", name, "", None, "test"), ("tfds", name, "/data", None, "test")]
