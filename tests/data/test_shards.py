import concurrent.futures
import json
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from packing import (
    COUNT,
    FILES,
    assert_records,
    write,
    write_records,
)

from repae_jax.data.manifest import read_manifest
from repae_jax.data.shards import PackedRecords, verify
from repae_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "packed")
    return tmp_path / "packed"


# --- reading ---


def test_records_are_read_by_index(folder):
    records = PackedRecords(folder)
    assert_records(records)
    assert records[np.int64(7)]["name"] == "number 7"
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            records[index]


def test_records_are_read_by_threads_and_after_pickling(folder):
    records = PackedRecords(folder)
    records[0]  # a reader is open
    assert_records(pickle.loads(pickle.dumps(records)))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert_records([*pool.map(records.__getitem__, range(COUNT))])


@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_lost_shard_is_named_before_anything_is_read(folder, damage):
    path = folder / FILES[1]
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    for use in (PackedRecords, verify):
        with pytest.raises(UserError, match=f"{FILES[1]}: (missing|damaged, .* bytes)"):
            use(folder)


def test_a_flipped_bit_is_an_error_and_never_another_record(folder):
    path = folder / FILES[1]
    data = path.read_bytes()
    # the header, the records, the end of the last one, the footer, and padding
    used = [position for position, byte in enumerate(data) if byte]
    rng = np.random.default_rng(0)
    positions = {0, 1, 8, 63, 64, len(data) - 1, *used[:: len(used) // 150], *used[-40:]}
    positions |= {int(position) for position in rng.integers(0, len(data), 20)}
    inside = data.index(b"number 5")
    troubles = {}
    for position in sorted(positions | {inside}):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{FILES[1]}: damaged, its checksum"):
            verify(folder)
        troubles[position] = trouble_of_reading(folder)
    assert "record 1 is damaged" in troubles[inside]
    reported = [trouble for trouble in troubles.values() if trouble]
    assert len(reported) > len(troubles) / 2
    assert all(FILES[1] in trouble for trouble in reported)


def trouble_of_reading(folder):
    """The error that reading all records ends with; None if all of them are right."""
    try:
        assert_records(PackedRecords(folder))
    except UserError as error:
        return str(error)
    return None


def test_zeros_in_place_of_a_shard_are_an_error(folder):
    path = folder / FILES[0]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=f"{FILES[0]}: cannot be read or is damaged"):
        PackedRecords(folder)[0]


def test_a_shard_of_another_data_set_is_found_by_its_checksum(tmp_path, folder):
    write(tmp_path / "other", lambda indexes, writer: write_records(reversed(indexes), writer))
    shutil.copy(tmp_path / "other" / FILES[2], folder / FILES[2])
    with pytest.raises(UserError, match=f"{FILES[2]}: damaged, its checksum"):
        verify(folder)


def test_a_record_of_another_kind_is_named(folder):
    path = folder / FILES[2]
    size = path.stat().st_size
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for data in (b"\x80", b"not msgpack"):
        writer.write(data)
    writer.close()
    assert path.stat().st_size == size
    assert PackedRecords(folder)[8] == {}
    with pytest.raises(UserError, match=f"{FILES[2]}, record 1: damaged"):
        PackedRecords(folder)[9]


# --- manifests ---


def edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "trouble"),
    [
        (lambda path: path.unlink(), "holds no packed data set"),
        (lambda path: path.write_bytes(b""), "damaged, no JSON"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "damaged, no JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "damaged, no JSON"),
        (lambda path: path.write_text("[1, 2]"), "not the manifest of a packed"),
        (lambda path: path.write_text('{"name": "x"}'), "not the manifest of a packed"),
        (
            lambda path: edited(path.parent, lambda m: m.update(format="repae_jax packed 2")),
            "'repae_jax packed 2', this version reads 'repae_jax packed 1'",
        ),
        (lambda path: edited(path.parent, lambda m: m.update(num_classes=6)), "edited"),
        (lambda path: edited(path.parent, lambda m: m["shards"].pop()), "edited"),
        (lambda path: edited(path.parent, lambda m: m.pop("sha256")), "edited"),
    ],
)
def test_a_manifest_that_is_none_is_an_error(folder, damage, trouble):
    damage(folder / "manifest.json")
    for use in (read_manifest, PackedRecords, verify):
        with pytest.raises(UserError, match=f"{re.escape(str(folder))}.*{trouble}"):
            use(folder)


def test_a_flipped_bit_in_the_manifest_is_an_error(folder):
    path = folder / "manifest.json"
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 7)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="manifest.json"):
            read_manifest(folder)
