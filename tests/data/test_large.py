"""Small files that claim to be large: the work is bounded by what is wanted of them."""

import concurrent.futures
import io
import json
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from pictures import data_config, png
from PIL import Image
from test_crop import picture, stated_crop

from repae_jax.data import decode
from repae_jax.data.crop import center_crop
from repae_jax.data.decode import MAX_PIXELS, decode_cropped, decode_pixels
from repae_jax.data.sources import open_source
from repae_jax.errors import BadImage, UserError
from repae_jax.evaluation.image_sets import open_images

MILLION = 1_000_000


def line(width, height):
    """A line of pixels whose colours change slowly, and its middle."""
    ramp = np.stack([np.arange(MILLION) // step % 256 for step in (3, 50, 700)], -1)
    return Image.fromarray(ramp.astype(np.uint8).reshape(height, width, 3))


# Prints how long it took, by how many bytes the most memory grew, and what came of it. The limit on
# memory is 450 MB above what the imports take.
LIMITED = """
import json, pathlib, resource, sys, time
from PIL import Image
from repae_jax.data.decode import decode_cropped
from repae_jax.errors import BadImage
import repae_jax.data.crop
Image.init()

def memory(key):  # getrusage would count the parent's from before the exec
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 450_000_000,) * 2)
before = memory("VmHWM")
results = []
for path in sys.argv[2:]:
    start = time.perf_counter()
    try:
        result = decode_cropped(pathlib.Path(path).read_bytes(), int(sys.argv[1]), path).tolist()
    except BadImage as error:
        result = str(error)
    results.append((time.perf_counter() - start, memory("VmHWM") - before, result))
json.dump(results, sys.stdout)
"""


def limited(size, *paths):
    command = [sys.executable, "-c", LIMITED, str(size), *map(str, paths)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)


def test_a_line_of_a_million_pixels_takes_no_gigabytes(tmp_path):
    for name, size in {"tall": (1, MILLION), "wide": (MILLION, 1)}.items():
        line(*size).save(tmp_path / f"{name}.png")
    results = limited(256, tmp_path / "tall.png", tmp_path / "wide.png")
    for (seconds, grown, pixels), tall in zip(results, (True, False), strict=True):
        assert seconds < 5
        assert grown < 100e6
        middle = np.asarray(line(1, MILLION))[MILLION // 2 - 10 : MILLION // 2 + 10]
        expected = stated_crop(middle if tall else middle.transpose(1, 0, 2), 256)
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1)


@pytest.mark.parametrize(
    "size", [(1, 70), (7, 601), (30, 2200), (90, 6001), (20, 20_000), (3, 500)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_long_pictures_are_the_stated_crop(size, turned):
    image = picture(*(reversed(size) if turned else size))
    pixels = np.asarray(center_crop(image, 32))
    assert pixels.shape == (32, 32, 3)
    # two passes round in between, and each of the halvings before them
    np.testing.assert_allclose(pixels, stated_crop(np.asarray(image), 32), rtol=0, atol=2)


def test_a_picture_that_does_not_fit_the_memory_is_a_bad_one(tmp_path):
    """99 million pixels, a byte each and then four too, for which 450 MB have no room."""
    rows = b"\0" * (9968 * (9968 // 8 + 1))
    (tmp_path / "large.png").write_bytes(png(9968, 9968, 1, 0, rows))
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "good.png")
    (_, _, bad), (_, _, good) = limited(16, tmp_path / "large.png", tmp_path / "good.png")
    assert "large.png: not a readable image (it does not fit the memory)" in bad
    assert good == np.full((16, 16, 3), (1, 2, 3)).tolist()


# Decodes two pictures in a thread each; prints by how many bytes the most memory grew.
AT_ONCE = """
import pathlib, sys, threading
from repae_jax.data.decode import decode_cropped

def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

data, before = pathlib.Path(sys.argv[1]).read_bytes(), memory("VmHWM")
decode = lambda: decode_cropped(data, 64, "x")
threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(memory("VmHWM") - before)
"""


def test_large_pictures_are_decoded_one_at_a_time_and_without_a_word(tmp_path):
    """Of 38 bytes, from which WebP makes 1.5 GB."""
    size = (16_383, 6103)
    assert 0.99 * MAX_PIXELS < size[0] * size[1] < MAX_PIXELS
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.webp", lossless=True, method=0)
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "x.webp")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert 1e9 < int(done.stdout) < 2e9
    assert done.stderr == ""


def test_pictures_share_what_may_be_decoded_at_a_time():
    share, most, now, lock = decode._Budget(10), [], [0], threading.Lock()

    def take(part):
        with share.reserve(part):
            with lock:
                now[0] += part
                most.append(now[0])
            time.sleep(0.002)
            with lock:
                now[0] -= part

    parts = [1, 2, 3, 4, 10, 10, 7, 5] * 6
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(take, parts))
        with pytest.raises(ZeroDivisionError), share.reserve(10):
            raise ZeroDivisionError  # gives back what it took
        pool.submit(take, 10).result(timeout=60)
    assert max(most) == 10
    assert len(most) == len(parts) + 1


@pytest.mark.parametrize("side", [11_000, 20_000])
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_pictures_over_the_limit_are_refused_by_their_header(side, limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow's, which others switch off
    assert side**2 > MAX_PIXELS
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImage, match=r"x\.png: not a readable image \(.*(limit of|more than)"):
        decode_cropped(png(side, side, 1, 0, b"no rows at all"), 32, "x.png")


def test_prepared_pictures_of_another_size_are_not_decoded(tmp_path, monkeypatch):
    """Else a record of some kilobytes would take as much memory as a picture may have."""
    data = png(10_000, 10_000, 1, 0, b"no rows at all")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="record 3: 10000 x 10000 pixels, not 16 x 16"):
        decode_pixels(data, 16, "record 3")
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(data)
    with pytest.raises(UserError, match=r"y\.png: 10000 x 10000 pixels, but .* --resolution"):
        list(open_images(tmp_path).batches(2))


# --- HDF5 ---


def hdf5(folder, name, **entry):
    """The original's files with one image; `entry` is what h5py stores under its name."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "images.h5", "w") as file:
        if "link" in entry:
            file["a"] = entry["link"]
        elif "layout" in entry:
            file.create_virtual_dataset(name, entry["layout"])
        else:
            file.create_dataset(name, **entry)
        file["dataset.json"] = np.array(json.dumps({"labels": [[name, 0]]}).encode(), "S")
    (folder / "images_h5.json").write_text(json.dumps([name]))
    return data_config("hdf5", path=folder, num_classes=1, resolution=16)


def test_an_entry_of_zeros_is_not_read_into_gigabytes(tmp_path):
    zeros = dict(shape=(3, 200_000, 200_000), dtype=np.uint8, chunks=(1, 2000, 2000))
    config = hdf5(tmp_path, "a/x.npy", compression="gzip", **zeros)
    assert (tmp_path / "images.h5").stat().st_size < 100_000
    with pytest.raises(UserError, match="x.npy: 120,000,000,000 bytes are too many"):
        open_source(config, "train")


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual"])
def test_an_entry_in_another_file_is_refused(tmp_path, kind):
    """A data set from elsewhere would read whatever else is on the disk."""
    h5py = pytest.importorskip("h5py")
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x.npy"] = np.full((3, 16, 16), 7, np.uint8)
    shape = dict(shape=(3, 16, 16), dtype=np.uint8)
    layout = h5py.VirtualLayout(**shape)
    layout[:] = h5py.VirtualSource(secret, "x.npy", shape=(3, 16, 16))
    entry = {
        "external link": {"link": h5py.ExternalLink(secret, "/")},
        "external storage": {**shape, "external": [(secret, 0, 768)]},
        "virtual": {"layout": layout},
    }[kind]
    with pytest.raises(UserError, match=r"x\.npy: its values lie in another file"):
        open_source(hdf5(tmp_path, "a/x.npy", **entry), "train")


# --- numpy's files ---


def test_an_npz_that_claims_huge_images_is_refused(tmp_path):
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": (1, 10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(header, layout)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    with pytest.raises(UserError, match=r"x\.npz: .*\(1000000 x 1000000 pixels are more than"):
        open_images(tmp_path / "x.npz")
