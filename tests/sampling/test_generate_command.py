"""`generate`: files that others read, none made twice, and memory that does not grow with them."""

import ast
import json
import struct
import tracemalloc

import numpy as np
from painting import SIDE, contents, interrupt, paint, words
from PIL import Image

from repae_jax.cli import main
from repae_jax.sampling.class_labels import choose_labels
from repae_jax.utils.figures import image_grid


def read_streaming(path):
    """The first array of an .npz, image by image, without a zip or numpy reader.

    What a reader relies on that goes through the file once: the member comes first, is not
    compressed, and its header knows its length.
    """
    with open(path, "rb") as file:
        head = struct.unpack("<4s5H3I2H", file.read(30))
        signature, flags, method, size, name_length, extra_length = (head[i] for i in (0, 2, 3, 8, 9, 10))  # fmt: skip  # noqa: E501
        assert (signature, flags & 8, method) == (b"PK\x03\x04", 0, 0)
        assert file.read(name_length) == b"arr_0.npy"
        extra = file.read(extra_length)
        if size == 2**32 - 1:
            assert struct.unpack("<HH", extra[:4]) == (1, 16)
            (size,) = struct.unpack("<Q", extra[4:12])
        end = file.tell() + size
        assert file.read(8) == b"\x93NUMPY\x01\x00"
        (length,) = struct.unpack("<H", file.read(2))
        header = ast.literal_eval(file.read(length).decode("latin1"))
        assert header["fortran_order"] is False
        assert header["descr"] == "|u1"
        count, *shape = header["shape"]
        for _ in range(count):
            yield np.frombuffer(file.read(int(np.prod(shape))), np.uint8).reshape(shape)
        assert file.tell() == end


def test_an_npz_is_read_by_others(run, painted, tmp_path, capsys):
    assert main(words(run, tmp_path / "x.npz", count=70, batch_size=16)) == 0
    labels = np.arange(70) % 10
    expected = paint(np.arange(70), labels)
    np.testing.assert_array_equal(np.stack(list(read_streaming(tmp_path / "x.npz"))), expected)
    with np.load(tmp_path / "x.npz") as content:
        assert content.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(content["arr_0"], expected)
        assert content["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(content["arr_1"], labels)
    preview = np.asarray(Image.open(tmp_path / "x_preview.png"))
    np.testing.assert_array_equal(preview, image_grid(expected[:64], 8))
    about = json.loads((tmp_path / "x.json").read_text())
    assert (about["config"], about["step"], about["seed"]) == ("tiny", 4, 0)
    assert (about["method"], about["steps"], about["labels"]) == ("euler", 3, "balanced")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npz", "x_preview.png"]
    assert "x.npz: 70 images, 32x32, written" in capsys.readouterr().out


def test_a_folder_of_pngs(run, painted, tmp_path):
    output = tmp_path / "cfg1.5"
    assert main(words(run, output, count=20, batch_size=8, labels="random", seed=3)) == 0
    expected = paint(np.arange(20), choose_labels("random", 20, 10, 3)[0])
    assert sorted(path.name for path in output.iterdir()) == [f"{i:06d}.png" for i in range(20)]
    for index, image in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(Image.open(output / f"{index:06d}.png")), image)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cfg1.5", "cfg1.5.json", "cfg1.5_preview.png"]  # fmt: skip


def test_what_is_there_is_not_made_again(run, painted, tmp_path, capsys):
    options = dict(count=20, batch_size=8)
    for output in (tmp_path / "npz" / "x.npz", tmp_path / "png" / "x"):
        assert main(words(run, output, **options)) == 0
    whole = contents(tmp_path)
    painted.clear()
    capsys.readouterr()
    assert main(words(run, tmp_path / "npz" / "x.npz", **options)) == 0
    assert main(words(run, tmp_path / "png" / "x", **options)) == 0
    assert capsys.readouterr().out.count("exist already") == 2
    assert not painted
    # of lost and cut files their batches are made again, and no others
    (tmp_path / "png" / "x" / "000009.png").unlink()
    cut = tmp_path / "png" / "x" / "000017.png"
    cut.write_bytes(cut.read_bytes()[:-3])
    kept = (tmp_path / "png" / "x" / "000008.png").stat().st_mtime_ns
    assert main(words(run, tmp_path / "png" / "x", **options)) == 0
    assert [batch[0] for batch in painted] == [8, 16]
    assert contents(tmp_path) == whole
    assert (tmp_path / "png" / "x" / "000008.png").stat().st_mtime_ns == kept


def test_a_restart_goes_on_behind_the_last_whole_batch(run, painted, tmp_path, monkeypatch):
    options = dict(count=20, batch_size=8)
    assert main(words(run, tmp_path / "a" / "x.npz", **options)) == 0
    whole = contents(tmp_path / "a")
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        assert main(words(run, tmp_path / "b" / "x.npz", **options)) == 130
    partial = tmp_path / "b" / "x.npz.partial"
    assert partial.stat().st_size == 16 * SIDE * SIDE * 3
    with open(partial, "r+b") as file:  # in the middle of a write
        file.truncate(partial.stat().st_size - 5000)
    painted.clear()
    assert main(words(run, tmp_path / "b" / "x.npz", **options)) == 0
    assert [batch[0] for batch in painted] == [8, 16]
    assert contents(tmp_path / "b") == whole


def test_memory_does_not_grow_with_the_images(run, painted, tmp_path):
    size = 8000 * SIDE * SIDE * 3  # 25 MB
    main(words(run, tmp_path / "warm.npz", count=400, batch_size=200))
    tracemalloc.start()
    try:
        assert main(words(run, tmp_path / "x.npz", count=8000, batch_size=200)) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.npz").stat().st_size > size
    assert peak < size / 4
