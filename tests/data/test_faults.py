"""What goes wrong with data: every fault is one error that names its file, or is passed over."""

import concurrent.futures
import gc
import io
import logging
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pictures import data_config, encoded, png, random_picture, write_pictures

from repae_jax.data.decode import decode_pixels
from repae_jax.data.images import encode_pixels
from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.skip_bad_images import read_listing
from repae_jax.data.sources import ArraySource, open_source
from repae_jax.errors import BadImage, UserError

COUNT = 6


@pytest.fixture
def folder(tmp_path):
    """ant/0.jpg ... ant/5.jpg, in a folder beside which there is room."""
    write_pictures(tmp_path / "pictures", {f"ant/{i}.jpg": (40, 30, "RGB") for i in range(COUNT)})
    return tmp_path / "pictures"


def config(folder, **values):
    return data_config("folder", path=folder, num_classes=1, resolution=16, **values)


def png_without_pixels(width, height):
    return png(width, height, 8, 2, b"")


GOOD = encoded(random_picture(40, 30), "JPEG")
DAMAGED = {
    "a truncated JPEG": (GOOD[: len(GOOD) // 2], "truncated"),
    "a truncated header": (GOOD[:20], "none of JPEG|truncated|broken"),
    "a text": (b"this is no JPEG", "it is none of JPEG, PNG, WEBP, BMP, PPM, TIFF\\)"),
    "nothing": (b"", "it is empty"),
    "no width": (png_without_pixels(0, 5), "0 x 5 pixels|none of JPEG"),
    "no height": (png_without_pixels(5, 0), "5 x 0 pixels|none of JPEG"),
    "no pixels": (png_without_pixels(5, 5), "truncated|broken"),
    "a cut numpy file": (b"\x93NUMPY\x01\x00", "none of JPEG"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named(folder, content, reason):
    source = open_source(config(folder), "train")
    (folder / "ant" / "1.jpg").write_bytes(content)
    source[0]  # the others can still be read
    message = rf"{folder}/ant/1.jpg: not a readable image \(.*({reason})"
    with pytest.raises(BadImage, match=message):
        source[1]
    with pytest.raises(UserError, match=message):  # also through the pipeline's threads
        list(eval_batches(source, 2))


def test_damaged_pixels_are_named():
    with pytest.raises(BadImage, match="record 3: not a readable image"):
        decode_pixels(b"\x93NUMPY\x01\x00", 5, "record 3")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(75, dtype=np.uint8).reshape(5, 5, 3),
        np.asfortranarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)),
    ],
    ids=["C", "Fortran"],
)
def test_raw_pixels_are_what_numpy_wrote_and_never_less(array):
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    read = decode_pixels(data, 5, "record 3")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    read += 1  # nobody else's memory
    for length, reason in [(60, "its header is cut short"), (len(data) - 1, "smaller than")]:
        with pytest.raises(BadImage, match=rf"record 3: not a readable image \(.*{reason}"):
            decode_pixels(data[:length], 5, "record 3")


@pytest.mark.parametrize("array", [np.ones((5, 5, 3), np.float32), np.ones((5, 5), np.uint8)])
def test_other_raw_arrays_are_no_pixels(array):
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(BadImage, match=r"record 3: .* is not uint8 \(H, W, 3\)"):
        decode_pixels(file.getvalue(), 5, "record 3")


def test_raw_pixels_hold_no_objects():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadImage, match="record 3: not a readable image"):
        decode_pixels(file.getvalue(), 5, "record 3")


def test_raw_pixels_are_read_in_threads_while_garbage_is_collected():
    """numpy's reader parses its header; CPython 3.11 fails at that, about once in a thousand."""
    data = encode_pixels(np.zeros((32, 32, 3), np.uint8), "raw")

    def read(depth):
        return read(depth - 1) if depth else decode_pixels(data, 32, "record 3")

    def yield_to_others(*_):
        time.sleep(0)

    threshold = gc.get_threshold()
    gc.callbacks.append(yield_to_others)  # as JAX has one
    gc.set_threshold(7)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(read, [number % 37 for number in range(8_000)]))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(yield_to_others)


def test_a_damaged_file_is_named_through_worker_processes(folder):
    (folder / "ant" / "1.jpg").write_bytes(b"this is no JPEG")
    batches = train_batches(
        open_source(config(folder), "train"), batch_size=COUNT, seed=0, workers=1
    )
    with pytest.raises(BadImage, match=r"ant/1.jpg: not a readable image"):
        next(batches)
    batches.close()


def test_a_class_folder_without_images_is_named(folder):
    (folder / "bee").mkdir()
    with pytest.raises(UserError, match=r"bee has no images"):
        open_source(config(folder), "train")


# --- passing over bad images ---


def spoil(folder, *numbers):
    for number in numbers:
        (folder / "ant" / f"{number}.jpg").write_bytes(GOOD[:100])


def skipping(folder, listing=""):
    return open_source(config(folder, on_bad_image="skip"), "train", bad_images=listing)


def test_the_next_readable_image_takes_a_bad_ones_place(folder, caplog):
    sound = open_source(config(folder), "train")
    expected = [sound[index]["image"] for index in range(COUNT)]
    spoil(folder, 1, 2, 5)
    source = skipping(folder)
    assert (len(source), source.num_classes, source.name) == (COUNT, 1, str(folder))
    with caplog.at_level(logging.WARNING):
        for index, other in enumerate([0, 3, 3, 3, 4, 0]):  # after the last comes the first
            np.testing.assert_array_equal(source[index]["image"], expected[other])
    skipped = [record.getMessage() for record in caplog.records]
    assert len(skipped) == 3  # once each, though 2 was met twice
    for message, number in zip(skipped, (1, 2, 5), strict=True):
        assert message.startswith(f"skipped: {source.image_name(number)}: not a readable image")


def test_sound_images_keep_their_labels_and_bad_ones_take_their_replacements(tmp_path):
    write_pictures(tmp_path, {f"{name}/1.jpg": (9, 9, "RGB") for name in ("ant", "bee", "cat")})
    (tmp_path / "bee" / "1.jpg").write_bytes(b"")
    values = {"path": tmp_path, "num_classes": 3, "on_bad_image": "skip"}
    source = open_source(data_config("folder", **values), "train")
    assert [source[index]["label"] for index in range(3)] == [0, 2, 2]


def test_bad_images_are_listed_once_whatever_finds_them(folder, tmp_path):
    spoil(folder, 1, 4)
    listing = tmp_path / "run" / "bad_images.txt"
    source = skipping(folder, listing)
    assert read_listing(listing) == []
    batches = train_batches(source, batch_size=COUNT, seed=0, workers=1)
    next(batches)
    batches.close()
    names = sorted(read_listing(listing))
    assert names == [str(folder / "ant" / "1.jpg"), str(folder / "ant" / "4.jpg")]
    for again in (source, pickle.loads(pickle.dumps(source)), skipping(folder, listing)):
        list(eval_batches(again, COUNT))
    assert sorted(listing.read_text().splitlines()) == names


def test_a_listing_that_cannot_be_written_is_no_fault_of_the_data(folder, caplog):
    spoil(folder, 1)
    source = skipping(folder, folder / "ant" / "0.jpg" / "bad_images.txt")
    with caplog.at_level(logging.WARNING):
        source[1]
    assert "bad_images.txt: cannot be written" in caplog.text


def test_which_image_takes_the_place_does_not_depend_on_who_asks(folder):
    spoil(folder, 2, 3)
    alone = train_batches(skipping(folder), batch_size=2, seed=1)
    shares = [
        train_batches(skipping(folder), batch_size=2, seed=1, rows=(row,)) for row in range(2)
    ]
    for _ in range(2 * COUNT):
        joined = np.concatenate([next(share)["image"] for share in shares])
        np.testing.assert_array_equal(joined, next(alone)["image"])
    for batches in (alone, *shares):
        batches.close()


def test_a_source_without_a_readable_image_is_named(folder):
    spoil(folder, *range(COUNT))
    with pytest.raises(UserError, match=rf"{folder}: none of its {COUNT} images is readable"):
        skipping(folder)[3]


def test_only_bad_images_are_passed_over(folder):
    source = skipping(folder)
    (folder / "ant" / "1.jpg").unlink()  # perhaps a disk that comes back
    with pytest.raises(UserError, match=r"ant/1.jpg: cannot be read \(No such file"):
        source[1]


# --- worker processes ---


def endless():
    images = np.zeros((40, 8, 8, 3), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    return ArraySource("numbers", 40, images, np.arange(40))


def soon(function):
    """The function's result, or a failure instead of waiting forever."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(function).result(timeout=60)
    finally:
        pool.shutdown(wait=False)


def test_a_worker_outlives_the_runs_signals_and_its_death_is_reported():
    threads = train_batches(endless(), batch_size=8, seed=0)
    expected = [next(threads)["label"] for _ in range(20)]
    threads.close()
    batches = train_batches(endless(), batch_size=8, seed=0, workers=1)
    np.testing.assert_array_equal(next(batches)["label"], expected[0])
    (worker,) = multiprocessing.active_children()

    # Ctrl-C and schedulers reach every process; the run itself wants to end in order
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    for labels in expected[1:10]:  # more than was read ahead
        np.testing.assert_array_equal(soon(lambda: next(batches)["label"]), labels)

    os.kill(worker.pid, signal.SIGKILL)
    received = []

    def drain():  # what it had read ahead
        while len(received) < 20:
            received.append(next(batches)["label"])

    with pytest.raises(UserError, match=r"workers = 1: a process .* status -9 \(.*memory"):
        soon(drain)
    # nothing was lost: asked again, a new worker goes on
    rest = expected[10 + len(received) :]
    np.testing.assert_array_equal(soon(lambda: next(batches)["label"]), rest[0])
    batches.close()


def test_a_killed_run_leaves_no_workers_behind():
    script = (
        "import multiprocessing, sys, time\n"
        "import numpy as np\n"
        "from repae_jax.data.pipeline import train_batches\n"
        "from repae_jax.data.sources import ArraySource\n"
        "if __name__ == '__main__':\n"
        "    zeros = np.zeros((9, 4, 4, 3), np.uint8)\n"
        "    source = ArraySource('zeros', 1, zeros, np.zeros(9, np.int32))\n"
        "    batches = train_batches(source, batch_size=3, seed=0, workers=1)\n"
        "    next(batches)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    assert is_running(worker)
    run.kill()
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.1)
    lives_on = is_running(worker)
    if lives_on:
        os.kill(worker, signal.SIGKILL)
    assert not lives_on


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")  # dead, but nobody has asked how it ended?
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
