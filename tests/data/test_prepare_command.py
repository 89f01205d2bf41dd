"""`prepare` as a command: what it says of a data set, and of one to verify."""

import argparse
import os

import pytest
from PIL import Image
from preparing import SIZE, damage

from repae_jax.commands import prepare
from repae_jax.data.manifest import read_manifest
from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError


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
        "crop": "adm",
        "on_bad_image": "error",
        "quiet": True,
    }
    return argparse.Namespace(**{**defaults, **values})


def test_the_command_prepares_and_verifies(pictures, tmp_path, capsys):
    output = tmp_path / "packed"
    damage(pictures / "cat" / "1.jpeg")
    told = options(source=str(pictures), output=output, on_bad_image="skip")
    assert prepare.run(told) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: 4 records of 3 classes in 3 shards")
    assert second == "skipped 1 unreadable images (see the manifest): cat/1.jpeg"
    assert prepare.run(options(verify=output)) == 0
    assert capsys.readouterr().out.startswith(f"{output}: intact, 4 records")
    shard = output / read_manifest(output)["shards"][0]["file"]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"{shard}: damaged"):
        prepare.run(options(verify=output))


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
    assert prepare.run(told) == 0
    assert "gar\\udce7on 2.png" in capfd.readouterr().out
    assert read_manifest(tmp_path / "packed")["skipped"] == [f"class/{names[1]}"]
    (record,) = PackedRecords(tmp_path / "packed")
    assert record["name"] == f"class/{names[0]}"


def test_a_class_whose_name_is_no_unicode_is_refused_before_the_work(tmp_path):
    for name in (os.fsdecode(b"gar\xe7on"), "other"):
        path = tmp_path / "pictures" / name / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(path)
    told = options(source=str(tmp_path / "pictures"), output=tmp_path / "packed")
    message = r"the class 'gar\\udce7on' has a name that is not UTF-8.*: rename its folder"
    with pytest.raises(UserError, match=message):
        prepare.run(told)
    assert not (tmp_path / "packed").exists()


def test_the_command_wants_a_source_and_an_output_or_a_folder_to_verify(tmp_path):
    with pytest.raises(UserError, match="name SOURCE and OUTPUT, or --verify"):
        prepare.run(options(source="digits"))
    with pytest.raises(UserError, match="leave out SOURCE and OUTPUT"):
        prepare.run(options(source="digits", verify=tmp_path))
