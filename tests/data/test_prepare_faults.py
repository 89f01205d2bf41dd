"""`prepare` with wrong options, bad images and kills: an error, or the same bytes in the end."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from packing import content
from preparing import FILES, cropped, damage, opened, run
from runs import TINY

from repae_jax.data.shards import PackedRecords
from repae_jax.errors import UserError

# --- what is refused ---


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
    folder = tmp_path / "packed"
    message = f"was begun with other images: .* delete the folder {folder} and run the command"
    with pytest.raises(UserError, match=message):
        run(pictures, tmp_path / "packed")


def test_a_file_that_cannot_be_read_is_never_left_out(pictures, tmp_path):
    path = pictures / "cat" / "1.jpeg"
    path.unlink()
    path.symlink_to(tmp_path / "a disk that is not there")
    with pytest.raises(UserError, match="cat/1.jpeg: cannot be read"):
        run(pictures, tmp_path / "packed", on_bad_image="skip")


def test_nothing_but_bad_images_is_an_error(pictures, tmp_path):
    for name in FILES:
        damage(pictures / name)
    with pytest.raises(UserError, match="nothing to write"):
        run(pictures, tmp_path / "packed", on_bad_image="skip")
    assert not (tmp_path / "packed" / "manifest.json").exists()


# --- restarts ---


@pytest.mark.slow
def test_killed_with_9_at_any_moment_and_restarted_it_writes_the_same_bytes(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    script = pathlib.Path(TINY).with_name("killed_runs.py")
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
