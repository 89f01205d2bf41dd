import argparse
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from packing import content
from PIL import Image, ImageOps

from repae_jax.data import prepare as module
from repae_jax.data.crop import rgb_square
from repae_jax.data.digits import load_digits_split
from repae_jax.data.manifest import read_manifest
from repae_jax.data.prepare import prepare, prepare_command
from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError

SIZE = 16
FILES = {  # in the order of a folder source
    "ant/only.webp": (20, 9, "RGB"),
    "bird/a.jpg": (70, 33, "RGB"),
    "bird/b.PNG": (40, 50, "RGB"),
    "cat/1.jpeg": (90, 64, "CMYK"),
    "cat/2.png": (32, 32, "P"),
}
LABELS = [0, 1, 1, 2, 2]


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name, (width, height, mode) in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / name)
    return root


def run(source, output, **options):
    return prepare(
        str(source), output, **{"resolution": SIZE, "per_shard": 2, "format": "png", **options}
    )


def cropped(path):
    with Image.open(path) as image:
        return rgb_square(image, SIZE)


def opened(record):
    """The image that a record holds, as Pillow reads it."""
    return Image.open(io.BytesIO(record["image"]))


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
    assert manifest["made"] == {
        "source": "folder",
        "name": "",
        "split": "train",
        "names_sha256": module.hashlib.sha256(names).hexdigest(),
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

    def stop(config, split):
        asked.append((config.source, config.name, config.path, config.num_classes, split))
        raise UserError("enough")

    monkeypatch.setattr(module, "open_source", stop)
    for path in ("", "/data"):
        with pytest.raises(UserError, match="enough"):
            run("tfds:imagenet2012:5.1.0", tmp_path / "packed", path=path, split="test")
    name = "imagenet2012:5.1.0"
    assert asked == [("tfds", name, "", None, "test"), ("tfds", name, "/data", None, "test")]


@pytest.mark.parametrize("source", ["nowhere", "file:x", ""])
def test_an_unknown_source_is_named(tmp_path, source):
    with pytest.raises(
        UserError, match=f"SOURCE is '{source}'.*tfds:NAME, hdf5:FOLDER, digits or scenes:COUNT"
    ):
        run(source, tmp_path / "packed")


def test_what_does_not_go_together_is_named_before_anything_is_written(pictures, tmp_path):
    wrong = [
        ({"resolution": 0}, "--resolution is 0"),
        ({"format": "gif"}, "'gif'"),
        ({"quality": 90}, "quality is 90 for png"),
        ({"format": "raw", "quality": 90}, "quality is 90 for raw"),
        ({"format": "jpeg", "quality": 101}, "quality is 101 for jpeg"),
        ({"format": "webp", "quality": 0}, "quality is 0 for webp"),
        ({"on_bad_image": "ignore"}, "--on-bad-image is 'ignore'"),
        ({"path": "/data"}, "--path is TFDS' data folder"),
        ({"split": "dev"}, "dev"),
        ({"per_shard": 0}, "per_shard = 0"),
        ({"workers": -1}, "workers = -1"),
    ]
    for options, trouble in wrong:
        with pytest.raises(UserError, match=trouble):
            run(pictures, tmp_path / "packed", **options)
    assert not (tmp_path / "packed").exists()


# --- bad images ---


def damage(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_that_names_the_file(pictures, tmp_path, workers):
    damage(pictures / "bird" / "b.PNG")
    with pytest.raises(UserError, match="bird/b.PNG: not a readable image"):
        run(pictures, tmp_path / "packed", workers=workers)
    names = os.listdir(tmp_path / "packed")
    assert "manifest.json" not in names
    assert "shard-00001-of-00003.array_record" not in names
    assert not [name for name in names if name.endswith(".tmp")]


def test_bad_images_can_be_left_out_and_are_listed(pictures, tmp_path):
    bad = ["bird/a.jpg", "cat/2.png"]
    for name in bad:
        damage(pictures / name)
    manifest = run(pictures, tmp_path / "packed", on_bad_image="skip")
    assert manifest["skipped"] == bad
    assert manifest["count"] == 3
    assert manifest["num_classes"] == 3
    records = PackedRecords(tmp_path / "packed")
    assert [record["name"] for record in records] == [name for name in FILES if name not in bad]
    for record in records:
        expected = cropped(pictures / record["name"])
        np.testing.assert_array_equal(np.asarray(opened(record)), expected)


def test_a_run_that_a_bad_image_stopped_may_leave_it_out(pictures, tmp_path):
    damage(pictures / "cat" / "2.png")
    with pytest.raises(UserError, match="cat/2.png"):
        run(pictures, tmp_path / "packed")
    run(pictures, tmp_path / "packed", on_bad_image="skip")
    run(pictures, tmp_path / "at once", on_bad_image="skip")
    assert content(tmp_path / "packed") == content(tmp_path / "at once")


def test_files_that_were_removed_are_said(pictures, tmp_path):
    damage(pictures / "cat" / "2.png")
    with pytest.raises(UserError, match="cat/2.png"):
        run(pictures, tmp_path / "packed")
    (pictures / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match="was begun with other images: .* delete it and begin"):
        run(pictures, tmp_path / "packed")


def test_a_file_that_cannot_be_read_is_never_left_out(pictures, tmp_path):
    path = pictures / "cat" / "1.jpeg"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cat/1.jpeg: cannot be read"):
        run(pictures, tmp_path / "packed", on_bad_image="skip")


def test_nothing_but_bad_images_is_an_error(pictures, tmp_path):
    for name in FILES:
        damage(pictures / name)
    with pytest.raises(UserError, match="nothing to write"):
        run(pictures, tmp_path / "packed", on_bad_image="skip")
    assert not (tmp_path / "packed" / "manifest.json").exists()


# --- restarts ---


def test_killed_with_9_at_any_moment_and_restarted_it_writes_the_same_bytes(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    script = pathlib.Path(__file__).with_name("killed_runs.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, script, pictures, tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    kills = dict(line.split() for line in result.stdout.splitlines())
    assert int(kills["calls"]) > 40
    assert int(kills["moments"]) >= 10


def test_killed_with_9_while_workers_write_and_restarted_it_writes_the_same_bytes(tmp_path):
    def call(output, workers):
        options = f"resolution=32, per_shard=9, format='png', workers={workers}"
        return f"prepare('digits', {str(output)!r}, {options})"

    script = f"from repae_jax.data.prepare import prepare; {call(tmp_path / 'packed', 2)}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    sidecars = tmp_path / "packed" / "progress"
    deadline = time.monotonic() + 60
    while not list(sidecars.glob("shard-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "packed" / "manifest.json").exists()
    run("digits", tmp_path / "packed", resolution=32, per_shard=9)
    run("digits", tmp_path / "whole", resolution=32, per_shard=9)
    assert content(tmp_path / "packed") == content(tmp_path / "whole")


def test_other_options_or_images_are_refused(pictures, tmp_path):
    run(pictures, tmp_path / "packed")
    before = content(tmp_path / "packed")
    with pytest.raises(UserError, match="begun with resolution = 16, not 8"):
        run(pictures, tmp_path / "packed", resolution=8)
    with pytest.raises(UserError, match="begun with format = 'png', not 'webp'"):
        run(pictures, tmp_path / "packed", format="webp")
    (pictures / "cat" / "2.png").rename(pictures / "cat" / "3.png")
    with pytest.raises(UserError, match="begun with other images"):
        run(pictures, tmp_path / "packed")
    assert content(tmp_path / "packed") == before


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


# --- the command ---


def options(**values):
    defaults = {
        "source": None,
        "output": None,
        "verify": None,
        "resolution": SIZE,
        "format": "png",
        "quality": None,
        "split": "train",
        "path": "",
        "per_shard": 2,
        "workers": 0,
        "exif": False,
        "on_bad_image": "error",
        "quiet": True,
    }
    return argparse.Namespace(**{**defaults, **values})


def test_the_command_prepares_and_verifies(pictures, tmp_path, capsys):
    output = tmp_path / "packed"
    damage(pictures / "cat" / "1.jpeg")
    told = options(source=str(pictures), output=output, on_bad_image="skip")
    assert prepare_command(told) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: 4 records of 3 classes in 3 shards")
    assert second == "skipped 1 that are no readable images (see its manifest): cat/1.jpeg"
    assert prepare_command(options(verify=output)) == 0
    assert capsys.readouterr().out.startswith(f"{output}: whole, 4 records")
    shard = output / read_manifest(output)["shards"][0]["file"]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"{shard}: damaged"):
        prepare_command(options(verify=output))


def test_names_that_are_no_unicode(tmp_path, capfd):
    names = [os.fsdecode(b"gar\xe7on 1.png"), os.fsdecode(b"gar\xe7on 2.png")]
    for name in names:
        path = tmp_path / "pictures" / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE)).save(path)
    damage(path)
    told = options(
        source=str(tmp_path / "pictures"), output=tmp_path / "packed", on_bad_image="skip"
    )
    assert prepare_command(told) == 0
    assert "gar\\udce7on 2.png" in capfd.readouterr().out
    assert read_manifest(tmp_path / "packed")["skipped"] == [f"class/{names[1]}"]
    (record,) = PackedRecords(tmp_path / "packed")
    assert record["name"] == f"class/{names[0]}"


def test_the_command_wants_a_source_and_an_output_or_a_folder_to_verify(tmp_path):
    with pytest.raises(UserError, match="name SOURCE and OUTPUT, or --verify"):
        prepare_command(options(source="digits"))
    with pytest.raises(UserError, match="leave out SOURCE and OUTPUT"):
        prepare_command(options(source="digits", verify=tmp_path))
