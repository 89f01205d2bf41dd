"""Fingerprints of data: the same wherever they lie, and another when anything has changed."""

import json
import os
import shutil

import numpy as np
import pytest
from packing import COUNT, write
from pictures import data_config, encoded, random_picture, write_pictures

from repae_jax.data import scenes
from repae_jax.data.identity import (
    as_recorded,
    changes,
    changes_since,
    class_table,
    read_fingerprints,
    sample,
    write_fingerprints,
)
from repae_jax.data.latents import KIND
from repae_jax.data.shard_writer import write_shards
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.utils.sealed import digest

PICTURES = {f"{name}/{number}.png": (9, 9, "RGB") for name in ("ant", "bee") for number in range(3)}


def folder_of(root):
    write_pictures(root, PICTURES)
    return data_config("folder", path=root, num_classes=None)


def hdf5_of(root, labels=(0, 1, 1)):
    h5py = pytest.importorskip("h5py")
    names = [f"00000/img{number}.png" for number in range(len(labels))]
    root.mkdir(exist_ok=True)
    with h5py.File(root / "images.h5", "w") as file:
        for name in names:
            file[name] = np.frombuffer(encoded(random_picture(8, 8), "PNG"), np.uint8)
        pairs = json.dumps({"labels": list(zip(names, labels, strict=True))}).encode()
        file["dataset.json"] = np.frombuffer(pairs, np.uint8)
    (root / "images_h5.json").write_text(json.dumps(names))
    return data_config("hdf5", path=root, num_classes=2, resolution=8)


def packed_of(root, **options):
    write(root, made={"resolution": 8, "exif": False}, **options)
    return data_config("packed", path=root, num_classes=5, resolution=8)


def latents_of(root, vae="abc", records=4):
    made = {"vae": vae, "mirrored": False, "images": False, "teachers": {}}
    made |= {"latent_shape": [1, 1, 1], "resolution": 8}

    def write_record(indexes, writer):
        for index in indexes:
            writer.write({"mean": np.full(1, index, np.float32), "label": 0})
        return {}

    statistics = {"mean": [0.0], "var": [1.0]}
    manifest = {"kind": KIND, "num_classes": 1, "statistics": statistics}
    write_shards(root, records, 4, write_record, made, manifest=manifest)
    return data_config("latents", path=root, num_classes=1)


def digits_of(root):
    return data_config("digits")


def scenes_of(root):
    return data_config("scenes", name="100", num_classes=24)


KINDS = {
    "folder": folder_of, "hdf5": hdf5_of, "packed": packed_of, "latents": latents_of,
    "digits": digits_of, "scenes": scenes_of,
}  # fmt: skip


def print_of(config, split="train"):
    found = open_source(config, split).fingerprint()
    assert {"source", "count"} <= found.keys()
    return as_recorded({split: found})[split]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_wherever_the_data_lie(kind, tmp_path):
    here = KINDS[kind](tmp_path / "here")
    found = print_of(here)
    assert found["source"] == kind
    assert str(tmp_path) not in json.dumps(found)
    if here.path is not None:
        here.path = shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "train").parent
    assert print_of(here) == found
    assert changes(found, print_of(here)) == []


def test_bad_images_that_are_passed_over_change_nothing(tmp_path):
    config = folder_of(tmp_path)
    found = print_of(config)
    config.on_bad_image = "skip"
    assert print_of(config) == found


def rename_class(root):
    (root / "ant").rename(root / "zebra")


def rename_file(root):
    (root / "bee" / "1.png").rename(root / "bee" / "3.png")


def move_file(root):
    (root / "ant" / "0.png").rename(root / "bee" / "7.png")


def swap_classes(root):
    (root / "ant").rename(root / "aside")
    (root / "bee").rename(root / "ant")
    (root / "aside").rename(root / "bee")


def replace_file(root):
    write_pictures(root, {"bee/2.png": (8, 8, "RGB")})


def new_class(root):
    shutil.copytree(root / "ant", root / "another")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: (root / "ant" / "0.png").unlink(),
         ["6 -> 5 images (-1)", "class 'ant' has 2 images, not 3"]),
        (lambda root: shutil.copy(root / "bee" / "0.png", root / "bee" / "8.png"),
         ["6 -> 7 images (+1)", "class 'bee' has 4 images, not 3"]),
        (rename_file, ["class 'bee' has images of other names"]),
        (move_file, ["class 'ant' has 2 images, not 3", "class 'bee' has 4 images, not 3"]),
        (swap_classes, ["class 'ant' has other images under the same names",
                        "class 'bee' has other images under the same names"]),
        (replace_file, ["class 'bee' has other images under the same names"]),
        (lambda root: shutil.rmtree(root / "ant"),
         ["6 -> 3 images (-3)", "class 'ant' is gone", "class 'bee' has label 0, not 1"]),
        (new_class, ["6 -> 9 images (+3)", "class 'another' is new",
                     "class 'ant' has label 1, not 0", "class 'bee' has label 2, not 1"]),
    ],
)  # fmt: skip
def test_what_has_changed_in_a_folder_is_named(change, expected, tmp_path):
    config = folder_of(tmp_path)
    before = print_of(config)
    change(tmp_path)
    assert changes(before, print_of(config)) == expected
    assert digest(before) != digest(print_of(config))


def test_a_renamed_class_is_known_by_its_images(tmp_path):
    names = {"ant/1.png": (9, 9, "RGB"), "bee/2.png": (9, 9, "RGB")}
    write_pictures(tmp_path, names)
    config = data_config("folder", path=tmp_path, num_classes=None)
    before = print_of(config)
    rename_class(tmp_path)
    assert changes(before, print_of(config)) == [
        "class 'ant' is called 'zebra' now",
        "class 'bee' has label 0, not 1",
        "class 'zebra' has label 1, not 0",
    ]


def test_of_many_changes_the_first_are_named(tmp_path):
    classes = [f"class{number}" for number in range(10)]
    write_pictures(tmp_path, {f"{name}/1.png": (9, 9, "RGB") for name in classes})
    config = data_config("folder", path=tmp_path, num_classes=None)
    before = print_of(config)
    for name in classes:
        (tmp_path / name / "1.png").rename(tmp_path / name / "2.png")
    lines = changes(before, print_of(config))
    assert lines[3] == "and 7 more such"
    assert len(lines) == 4


def test_other_labels_in_an_hdf5_file_are_other_data(tmp_path):
    before = print_of(hdf5_of(tmp_path / "a"))
    after = print_of(hdf5_of(tmp_path / "b", labels=(1, 0, 1)))
    assert changes(before, after) == [
        "class '0' has images of other names", "class '1' has images of other names",
    ]  # fmt: skip


def test_other_images_under_the_same_names_in_an_hdf5_file_are_other_data(tmp_path):
    h5py = pytest.importorskip("h5py")
    config = hdf5_of(tmp_path)
    before = print_of(config)
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        del file["00000/img1.png"]
        other = encoded(random_picture(8, 8).rotate(90), "PNG")
        file["00000/img1.png"] = np.frombuffer(other, np.uint8)
    assert changes(before, print_of(config)) == ["class '1' has other images under the same names"]


@pytest.mark.parametrize("kind", ["folder", "hdf5"])
def test_three_images_of_a_class_are_looked_at(kind, tmp_path):
    """The first, the middle and the last; the same where most of a class is out of reach."""
    config = KINDS[kind](tmp_path)
    source = open_source(config, "train")
    seen = []

    def content(index):
        seen.append(index)
        return bytes([index])

    table = class_table(["name"] * 7, np.array([0, 1, 0, 1, 0, 0, 0]), ["a", "b"], content)
    assert sorted(seen) == [0, 1, 3, 4, 6]
    assert [entry[:2] for entry in table] == [["a", 5], ["b", 2]]
    assert [sample(count) for count in (0, 1, 2, 3, 10)] == [
        [], [0], [0, 1], [0, 1, 2], [0, 4, 9],
    ]  # fmt: skip
    assert all(len(entry) == 4 for entry in source.fingerprint()["classes"])


def test_what_cannot_be_read_is_named_as_by_training(tmp_path):
    config = folder_of(tmp_path)
    (tmp_path / "bee" / "2.png").unlink()
    (tmp_path / "bee" / "2.png").symlink_to(tmp_path / "another-disk" / "2.png")
    source = open_source(config, "train")
    with pytest.raises(UserError, match=r"bee/2\.png: cannot be read"):
        source.fingerprint()


def other_records(indexes, writer):
    for index in indexes:
        writer.write({"image": np.zeros((2, 3), np.uint8), "label": 0, "name": f"{index}"})
    return {}


def test_other_packed_images_or_options_are_other_data(tmp_path):
    before = print_of(packed_of(tmp_path / "a"))
    same = print_of(packed_of(tmp_path / "b"))
    assert changes(before, same) == []
    content = changes(before, print_of(packed_of(tmp_path / "c", write_shard=other_records)))
    assert [line.partition(":")[0] for line in content] == ["content"]
    fewer = changes(before, print_of(packed_of(tmp_path / "d", count=COUNT - 1)))
    assert fewer[0] == "10 -> 9 images (-1)"
    assert "made.source_count: 10 -> 9" in fewer


def test_another_vae_is_told_of_cached_latents(tmp_path):
    before, after = (print_of(latents_of(tmp_path / vae, vae)) for vae in ("abc", "def"))
    assert changes(before, after) == ["made.vae: abc -> def"]


def test_both_splits_of_what_is_embedded_differ(monkeypatch):
    for config in (digits_of(None), scenes_of(None)):
        assert print_of(config, "train") == print_of(config, "train")
    assert print_of(digits_of(None), "train") != print_of(digits_of(None), "heldout")
    before = print_of(scenes_of(None))
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert changes(before, print_of(scenes_of(None))) == ["version: 1 -> 2"]


def test_what_an_older_version_did_not_note_is_no_change(tmp_path):
    found = print_of(folder_of(tmp_path))
    assert changes({"source": "folder", "count": 6}, found) == []
    less = {**found, "classes": [entry[:3] for entry in found["classes"]]}  # no content
    assert changes(less, found) == changes(found, less) == []
    swap_classes(tmp_path)
    assert changes(less, print_of(folder_of(tmp_path))) == []
    rename_class(tmp_path)
    after = print_of(data_config("folder", path=tmp_path, num_classes=None))
    assert changes(less, after)[0].startswith("class 'ant' is ")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"heldout": {"source": "folder", "count": 6}}',
                '{"train": 3}', '{"train": {}}', '{"train": {"source": "a", "count": "many"}}',
                '{"train": {"source": "a", "count": 6, "classes": [[[], 1]]}}'],
)  # fmt: skip
def test_a_damaged_record_is_named(content, tmp_path):
    path = tmp_path / "data.json"
    found = {"train": print_of(folder_of(tmp_path / "pictures"))}
    write_fingerprints(path, found)
    assert changes_since(path, found) == []
    path.write_text(content)
    with pytest.raises(UserError) as error:
        changes_since(path, found)
    line = str(error.value)
    assert line.startswith(f"{path} is damaged")
    assert line.endswith("restore it, or remove it if the data are what they were")
    for words in (str(path), "is damaged", "restore it"):
        assert line.count(words) == 1


def test_names_that_are_no_unicode_are_kept(tmp_path):
    """Training takes such folders and files."""
    names = [os.fsdecode(name) for name in (b"gar\xe7on/\xff.png", b"other/1.png")]
    write_pictures(tmp_path / "pictures", {name: (9, 9, "RGB") for name in names})
    config = data_config("folder", path=tmp_path / "pictures", num_classes=None)
    found = {"train": print_of(config)}
    path = tmp_path / "data.json"
    write_fingerprints(path, found)
    assert read_fingerprints(path) == found
    assert changes_since(path, {"train": print_of(config)}) == []
    (tmp_path / "pictures" / names[0]).parent.rename(tmp_path / "pictures" / "girl")
    lines = [line for _, line in changes_since(path, {"train": print_of(config)})]
    assert lines == [r"class 'gar\udce7on' is called 'girl' now"]


def test_an_edited_record_is_refused_and_an_unsealed_one_is_taken(tmp_path):
    path = tmp_path / "data.json"
    found = {"train": print_of(folder_of(tmp_path / "pictures"))}
    write_fingerprints(path, found)
    assert read_fingerprints(path) == found
    sealed = json.loads(path.read_text())
    sealed["train"]["count"] += 1
    path.write_text(json.dumps(sealed))
    with pytest.raises(UserError, match=f"{path} is damaged or was edited .its checksum differs"):
        read_fingerprints(path)
    del sealed["sha256"]  # as versions before wrote it
    path.write_text(json.dumps(sealed))
    assert changes_since(path, found) == [("train", "7 -> 6 images (-1)")]


def test_a_record_that_is_out_of_reach_is_not_a_missing_one(tmp_path):
    path = tmp_path / "data.json"
    assert read_fingerprints(path) is None
    path.symlink_to(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"data\.json is a link to .*gone\.json, where no file is"):
        read_fingerprints(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"data\.json is no file: restore it, or remove"):
        read_fingerprints(path)


def test_a_link_that_leads_nowhere_stands_for_no_statistics(tmp_path):
    """Beside a VAE's file, as in a cache of links."""
    from repae_jax.interop import vae_files

    stats = tmp_path / "vae-latents-stats.pt"
    assert vae_files._statistics_beside(tmp_path / "vae.pt", 4) is None
    stats.symlink_to(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=r"vae-latents-stats\.pt is a link to"):
        vae_files._statistics_beside(tmp_path / "vae.pt", 4)
