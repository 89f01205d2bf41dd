"""What is decoded, whatever a file is called, and what is refused by name."""

import ast
import io
import os
import pathlib
import stat
import subprocess

import numpy as np
import pytest
import tifffile
from pictures import data_config, encoded, random_picture, tiff, write_pictures
from PIL import EpsImagePlugin, Image

import repae_jax
from repae_jax.data.crop import center_crop
from repae_jax.data.decode import FORMATS, decode_cropped, decode_pixels
from repae_jax.data.prepare import prepare
from repae_jax.data.shard_writer import write_shards
from repae_jax.data.sources import open_source
from repae_jax.data.tfds_source import TfdsSource
from repae_jax.errors import BadImage
from repae_jax.evaluation.image_sets import open_images

# --- grey of more than eight bits ---

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
LOW_BYTES = np.random.default_rng(0).integers(0, 256, RAMP.shape, np.uint16)
DEEP = RAMP << 8 | LOW_BYTES


def written(array, **options):
    """By tifffile, as another program writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def twelve_bits(samples):
    """Three bytes a pair of samples, the highest bits first (TIFF 6.0, page 29)."""
    pairs = samples.reshape(-1, 2).astype(int)
    three = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
    return np.stack(three, 1).astype(np.uint8).tobytes()


GREY = {
    "16-bit PNG": lambda: encoded(Image.fromarray(DEEP), "PNG"),
    "16-bit TIFF": lambda: written(DEEP, photometric="minisblack"),
    "16-bit TIFF, compressed": lambda: written(DEEP, photometric="minisblack", compression=8),
    "16-bit TIFF, big-endian": lambda: written(DEEP, photometric="minisblack", byteorder=">"),
    "16-bit TIFF, white zero": lambda: written(65535 - DEEP, photometric="miniswhite"),
    "8-bit TIFF, white zero": lambda: written((255 - RAMP).astype(np.uint8), photometric=0),
    "12-bit TIFF": lambda: tiff(16, 16, 12, twelve_bits(DEEP >> 4)),
    "16-bit PGM": lambda: b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(),
    "8-bit PGM": lambda: b"P5 16 16 255\n" + RAMP.astype(np.uint8).tobytes(),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_keeps_its_highest_byte(kind):
    expected = np.repeat(RAMP.astype(np.uint8)[..., None], 3, axis=-1)
    pixels = decode_pixels(GREY[kind](), 16, kind)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(decode_cropped(GREY[kind](), 16, kind), expected)


UNKNOWN = {
    "float32": lambda: written((RAMP / 255).astype(np.float32)),
    "float32 PFM": lambda: b"Pf\n16 16\n-1.0\n" + (RAMP / 255).astype("<f4").tobytes(),
    "int32": lambda: written(RAMP.astype(np.int32)),
    "uint32": lambda: written(RAMP.astype(np.uint32)),
    "int16": lambda: written(RAMP.astype(np.int16)),
    "int8": lambda: tiff(16, 16, 8, RAMP.astype(np.uint8).tobytes(), sample_format=2),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_samples_without_a_known_white_are_refused_by_name(kind):
    expected = {"f": "floats", "i": "integers"}[kind.removeprefix("u")[0]]
    for decode in (decode_pixels, decode_cropped):
        with pytest.raises(BadImage, match=f"x.tif: not a readable image .*{expected}.* white"):
            decode(UNKNOWN[kind](), 16, "x.tif")


# --- formats ---

TAKEN = {
    "bmp": ("BMP", "RGB", {}),
    "bmp of a palette": ("BMP", "P", {}),
    "ppm": ("PPM", "RGB", {}),
    "pbm": ("PPM", "1", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff, LZW": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff, JPEG": ("TIFF", "RGB", {"compression": "jpeg"}),
    "tiff with alpha": ("TIFF", "RGBA", {}),
    "tiff of a palette": ("TIFF", "P", {}),
    "tiff, one bit": ("TIFF", "1", {"compression": "group4"}),
    "tiff, CMYK": ("TIFF", "CMYK", {}),
    "two pages": ("TIFF", "RGB", {"save_all": True, "append_images": [random_picture(9, 9)]}),
    "animation": ("WEBP", "RGB", {"save_all": True, "lossless": True,
                                  "append_images": [random_picture(40, 30, seed=1)]}),
    "two photographs": ("MPO", "RGB", {"save_all": True,
                                       "append_images": [random_picture(40, 30, seed=1)]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken_is_what_pillow_reads_of_it(kind):
    """Of several pictures in a file the first."""
    format, mode, options = TAKEN[kind]
    data = encoded(random_picture(40, 30, mode), format, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(center_crop(image.convert("RGB"), 16))
    np.testing.assert_array_equal(decode_cropped(data, 16, "x.png"), expected)


def test_no_other_format_is_decoded_whatever_it_is_called():
    Image.init()
    refused = []
    for format in sorted(set(Image.SAVE) & set(Image.OPEN) - {*FORMATS, "MPO"}):
        for mode in ("RGB", "L", "1"):
            try:
                data = encoded(random_picture(32, 32, mode), format)
            except (OSError, ValueError, KeyError):
                continue
            with pytest.raises(BadImage, match=r"it is none of JPEG, PNG|cannot be decoded"):
                decode_cropped(data, 16, "x.png")
            refused.append(format)
            break
    assert {"EPS", "GIF", "ICO", "TGA", "PCX"} <= set(refused)


# --- programs, and others' files ---

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the path that leaves a mark when it is started."""
    mark, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow has not looked for it
    return mark


def pack(folder, **record):
    """A packed data set with one record of an image, 16 x 16."""
    write_pictures(folder / "pictures", {"ant/x.png": (16, 16, "RGB")})
    made = prepare(str(folder / "pictures"), folder / "made", resolution=16)["made"]

    def write(indexes, writer):
        writer.write({"image": EPS, "label": 0, "name": "x.png"})
        return {"skipped": []}

    content = {"kind": "images", "num_classes": 1, "classes": ["ant"]}
    del made["per_shard"], made["source_count"]
    write_shards(folder / "packed", 1, 1, write, made, manifest=content,
                 summarize=lambda notes: {"skipped": []})  # fmt: skip
    return folder / "packed"


def hdf5(folder):
    h5py = pytest.importorskip("h5py")
    folder.mkdir()
    with h5py.File(folder / "images.h5", "w") as file:
        file["a/x.png"] = np.array(EPS, "S")
        file["dataset.json"] = np.array(b'{"labels": [["a/x.png", 0]]}', "S")
    (folder / "images_h5.json").write_text('["a", "a/x.png", "dataset.json"]')
    return folder


def pictures(folder):
    (folder / "ant").mkdir(parents=True)
    for name in ("x.png", "y.tif", "z.jpg"):
        (folder / "ant" / name).write_bytes(EPS)
    return folder


WAYS = {
    "folder": lambda place: open_source(
        data_config("folder", path=pictures(place / "x"), num_classes=1), "train"
    )[0],
    "hdf5": lambda place: open_source(
        data_config("hdf5", path=hdf5(place / "x"), num_classes=1), "train"
    )[0],
    "packed": lambda place: open_source(
        data_config("packed", path=pack(place), num_classes=1, resolution=16), "train"
    )[0],
    "tfds": lambda place: TfdsSource("x", 1, [{"image": EPS, "label": 0}], 16)[0],
    "measured": lambda place: open_images(pictures(place / "x")),
    "measured and cropped": lambda place: next(open_images(pictures(place / "x"), 8).batches(1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_text_that_is_called_a_picture_starts_no_program(way, tmp_path, ghostscript):
    with pytest.raises(BadImage, match="not a readable image"):
        WAYS[way](tmp_path)
    assert not ghostscript.exists()
    with Image.open(io.BytesIO(EPS)) as image, pytest.raises((OSError, subprocess.SubprocessError)):
        image.load()
    assert ghostscript.exists()  # so Pillow itself would have


def test_it_is_passed_over_as_any_bad_image(tmp_path, ghostscript):
    pictures(tmp_path / "x")
    write_pictures(tmp_path / "x", {"ant/good.png": (16, 16, "RGB")})
    config = data_config("folder", path=tmp_path / "x", num_classes=1, on_bad_image="skip")
    source = open_source(config, "train")
    good = source[source.source.files.index("ant/good.png")]["image"]
    for index in range(len(source)):
        np.testing.assert_array_equal(source[index]["image"], good)
    assert not ghostscript.exists()


def calls(tree):
    """The dotted names of what a module calls, with the calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_one_function_opens_pictures_and_nothing_unpickles():
    """Any other way in would try all of Pillow's formats, or run what a file says."""
    package = pathlib.Path(repae_jax.__file__).parent
    scripts = [*package.rglob("*.py"), *package.parent.glob("configs/*.py")]
    opening = []
    for path in scripts:
        for name, call in calls(ast.parse(path.read_text())):
            where = f"{path.relative_to(package.parent)}:{call.lineno} {name}"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            last = name.split(".")[-1]
            if name == "Image.open" or last in ("imread", "decode_image", "decode_jpeg"):
                opening.append((where, keywords.get("formats")))
            assert keywords.get("allow_pickle", "False") == "False", where
            assert keywords.get("weights_only", "True") == "True", where
            assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), where
            assert last not in ("extractall", "unpack_archive"), where
    assert [formats for _, formats in opening] == ["FORMATS"], opening
    for notebook in package.parent.glob("notebooks/*.ipynb"):
        assert "Image.open" not in notebook.read_text()
