import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from packing import COUNT, FILES, MADE, MANIFEST, PER_SHARD, content, record, write, write_records

from repae_jax.data.manifest import read_manifest
from repae_jax.data.shards import PackedRecords, verify
from repae_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "packed")
    return tmp_path / "packed"


# --- what is written ---


def test_shards_are_array_records_of_msgpack_in_the_order_of_the_source(folder):
    assert sorted(os.listdir(folder)) == ["manifest.json", *FILES]
    counts = [4, 4, 2]
    records = []
    for file, count in zip(FILES, counts, strict=True):
        reader = ArrayRecordReader(str(folder / file))
        assert reader.num_records() == count
        assert "group_size:1," in reader.writer_options_string()
        records += [msgpack.unpackb(data) for data in reader.read_all()]
    for index, got in enumerate(records):
        expected = record(index)
        image = expected.pop("image")
        described = {"dtype": "uint8", "shape": [2, 3], "data": image.tobytes()}
        assert got == {"image": described, **expected}


def test_the_manifest_says_what_there_is(folder):
    manifest = read_manifest(folder)
    shards = manifest.pop("shards")
    assert manifest == {
        "format": "repae_jax packed 1",
        "kind": "images",
        "num_classes": 5,
        "classes": None,
        "count": 10,
        "made": {
            "source": "numbers",
            "seed": 3,
            "sizes": [2, 3],
            "per_shard": 4,
            "source_count": 10,
        },
    }
    for file, count, shard in zip(FILES, [4, 4, 2], shards, strict=True):
        data = (folder / file).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert shard == {"file": file, "count": count, "bytes": len(data), "sha256": digest}


def test_what_is_returned_is_what_can_be_read(tmp_path):
    assert write(tmp_path / "packed") == read_manifest(tmp_path / "packed")


def test_notes_of_the_shards_are_summarised_in_order(tmp_path):
    def summarize(notes):
        return {"indexes": [index for note in notes for index in note["indexes"]]}

    manifest = write(tmp_path / "packed", summarize=summarize)
    assert manifest["indexes"] == list(range(COUNT))


def test_elements_can_be_left_out(tmp_path):
    def only_odd(indexes, writer):
        return write_records([index for index in indexes if index % 2], writer)

    manifest = write(tmp_path / "packed", only_odd, per_shard=1)
    assert manifest["count"] == 5
    assert [shard["count"] for shard in manifest["shards"]] == [0, 1] * 5
    names = [record["name"] for record in PackedRecords(tmp_path / "packed")]
    assert names == [f"number {index}" for index in (1, 3, 5, 7, 9)]
    verify(tmp_path / "packed")


def test_a_data_set_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match="every element was left out"):
        write(tmp_path / "packed", lambda indexes, writer: {})
    with pytest.raises(UserError, match="source is empty"):
        write(tmp_path / "other", count=0)


@pytest.mark.parametrize("option", ["per_shard", "workers"])
def test_numbers_that_make_no_sense_are_named(tmp_path, option):
    with pytest.raises(UserError, match=f"{option} = -1"):
        write(tmp_path / "packed", **{option: -1})
    assert not (tmp_path / "packed").exists()


# --- what stood there before ---


def test_writing_twice_changes_nothing(folder):
    before = content(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write(folder) == read_manifest(folder)
    assert content(folder) == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize("foreign", ["holiday.png", "shard-00000.array_record", "progress/notes"])
def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path, foreign):
    path = tmp_path / "packed" / foreign
    path.parent.mkdir(parents=True)
    path.write_bytes(b"dear")
    with pytest.raises(UserError, match=rf"holds something else already \({foreign}\)"):
        write(tmp_path / "packed")
    assert content(tmp_path / "packed") == {foreign: b"dear"}


def test_shards_without_a_manifest_are_something_else(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=rf"something else already \({FILES[0]}\)"):
        write(folder)
    assert sorted(os.listdir(folder)) == FILES


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "packed").write_text("a file")
    with pytest.raises(UserError, match="packed: .*choose another folder"):
        write(tmp_path / "packed")


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"made": MADE | {"seed": 4}}, "seed = 3, not 4"),
        ({"made": {"source": "numbers", "seed": 3}}, r"sizes = \[2, 3\], not None"),
        ({"per_shard": 5}, "per_shard = 4, not 5"),
        ({"count": 9}, "source_count = 10, not 9"),
        ({"manifest": MANIFEST | {"num_classes": 6}}, "num_classes = 5, not 6"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_another_content_is_refused(tmp_path, changes, trouble, state):
    folder = tmp_path / "packed"
    if state == "finished":
        write(folder)
    else:
        stop_after(folder, shards=2)
    before = content(folder)
    with pytest.raises(UserError, match=f"was begun with {trouble}:"):
        write(folder, **changes)
    assert content(folder) == before


def stop_after(folder, shards):
    """A run that ends with an error in shard number `shards`."""

    def failing(indexes, writer):
        if indexes.start == shards * PER_SHARD:
            writer.write(record(indexes.start))
            raise UserError("enough")
        return write_records(indexes, writer)

    with pytest.raises(UserError, match="enough"):
        write(folder, failing)


def test_an_error_leaves_complete_shards_and_nothing_else(tmp_path, folder):
    unfinished = tmp_path / "unfinished"
    stop_after(unfinished, shards=2)
    whole = content(folder)
    left = content(unfinished)
    assert {name: left[name] for name in FILES[:2]} == {name: whole[name] for name in FILES[:2]}
    names = {name for name in left if not name.startswith("progress/")}
    assert names == set(FILES[:2])
    for use in (read_manifest, PackedRecords, verify):
        with pytest.raises(UserError, match="unfinished: run the command"):
            use(unfinished)


def test_a_restart_keeps_complete_shards(tmp_path, folder):
    unfinished = tmp_path / "unfinished"
    stop_after(unfinished, shards=1)
    again = []

    def noted(indexes, writer):
        again.append(indexes.start)
        return write_records(indexes, writer)

    write(unfinished, noted)
    assert again == [4, 8]
    assert content(unfinished) == content(folder)


def test_a_damaged_note_makes_its_shard_anew(tmp_path, folder):
    unfinished = tmp_path / "unfinished"
    stop_after(unfinished, shards=2)
    (unfinished / "progress" / "shard-00000.json").write_bytes(b"")  # power was cut
    os.truncate(unfinished / FILES[1], 100)
    write(unfinished)
    assert content(unfinished) == content(folder)


def unsealed(note):
    del note["sha256"]


@pytest.mark.parametrize("edit", [
    lambda note: note["shard"].update(count=0),
    lambda note: note["shard"].update(file=FILES[1]),
    lambda note: note.update(notes={"x": 1}),
    lambda note: note.clear(),
    unsealed,
], ids=["count", "file", "notes", "nothing", "an older version"])  # fmt: skip
def test_an_edited_note_makes_its_shard_anew(edit, tmp_path, folder, capsys):
    unfinished = tmp_path / "unfinished"
    stop_after(unfinished, shards=2)
    path = unfinished / "progress" / "shard-00000.json"
    note = json.loads(path.read_text())
    edit(note)
    path.write_text(json.dumps(note))
    write(unfinished)
    assert content(unfinished) == content(folder)
    assert f"warning: a shard is made again: {path}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 10)])
def test_a_lost_shard_of_a_finished_data_set_is_made_again(folder, damage):
    before = content(folder)
    damage(folder / FILES[1])
    write(folder)
    assert content(folder) == before


def test_a_lost_shard_cannot_be_made_from_another_source(folder):
    (folder / FILES[0]).unlink()
    with pytest.raises(UserError, match=f"{FILES[0]}: made again, it has another content"):
        write(folder, lambda indexes, writer: write_records(reversed(indexes), writer))
    assert sorted(os.listdir(folder)) == ["manifest.json", *FILES[1:]]


def test_two_runs_in_one_folder_do_not_mix(tmp_path):
    def in_the_way(indexes, writer):
        write(tmp_path / "packed")

    with pytest.raises(UserError, match="packed: another process is writing there"):
        write(tmp_path / "packed", in_the_way)


# --- full disks and dying processes ---


def test_a_full_disk_is_an_error_that_can_be_mended(tmp_path, folder):
    """A limit on the size of files stands for the full disk: the same calls fail."""
    full = tmp_path / "full"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a shard has 131,072
    try:
        with pytest.raises(UserError, match=f"{FILES[0]}: cannot be written .*File too large"):
            write(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(name for name in content(full) if not name.startswith("progress/")) == []
    write(full)
    assert content(full) == content(folder)


def test_no_room_for_a_note_is_an_error(tmp_path, folder, monkeypatch):
    full = tmp_path / "full"

    def no_room(source, target):
        if target.name == "shard-00001.json":
            raise OSError(28, "No space left on device")
        return rename(source, target)

    rename = type(full).replace
    with monkeypatch.context() as patch:
        patch.setattr(type(full), "replace", no_room)
        with pytest.raises(UserError, match=r"shard-00001.json: .*No space left on device"):
            write(full)
    write(full)
    assert content(full) == content(folder)


def die_in_the_second_shard(indexes, writer):
    if indexes.start == PER_SHARD:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_records(indexes, writer)


def test_workers_write_the_same_bytes_and_their_death_is_an_error(tmp_path, folder):
    parallel = tmp_path / "parallel"
    with pytest.raises(UserError, match="a worker process was ended from outside"):
        write(parallel, die_in_the_second_shard, workers=2)
    assert not [path for path in parallel.rglob("*") if path.suffix == ".tmp"]
    write(parallel, workers=2)
    assert content(parallel) == content(folder)


ORPHANS = """
import os, pathlib, sys, time
from repae_jax.data.shard_writer import write_shards

def wait(indexes, writer):
    pathlib.Path(sys.argv[2], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    manifest = {"kind": "images", "num_classes": 1}
    write_shards(sys.argv[1], 4, 1, wait, {}, manifest=manifest, workers=2)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "pids").mkdir()
    (tmp_path / "orphans.py").write_text(ORPHANS)
    script = [tmp_path / "orphans.py", tmp_path / "packed", tmp_path / "pids"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, *script], env=environment)
    wait_until(lambda: len(os.listdir(tmp_path / "pids")) == 2)
    parent.kill()
    parent.wait()
    pids = [int(name) for name in os.listdir(tmp_path / "pids")]
    try:
        wait_until(lambda: not any(map(is_alive, pids)))
    finally:  # a failure should not leave them behind
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
