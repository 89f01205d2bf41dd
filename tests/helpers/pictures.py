"""What the tests of data sources share: a config's data section, and picture files."""

import io
import pathlib
import struct
import types
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image


def data_config(source: str, **values) -> types.SimpleNamespace:
    """A config's data section."""
    fields = {"path": None, "name": None, "resolution": 32, "num_classes": 10, "flip": False}
    return types.SimpleNamespace(source=source, **{**fields, **values})


def random_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise, which no two seeds share."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_pictures(root: pathlib.Path, files: Mapping[str, tuple[int, int, str]]) -> None:
    """Picture files by name: (width, height, mode)."""
    for seed, (name, shape) in enumerate(files.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        random_picture(*shape, seed=seed).save(root / name)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colours: int, rows: bytes) -> bytes:
    """A PNG that Pillow does not write: any header, `rows` of samples each behind a zero byte."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(width: int, height: int, bits: int, samples: bytes, **tags: int) -> bytes:
    """A grey TIFF, little-endian and not compressed, that neither Pillow nor tifffile writes.

    tags: `photometric` (0: white is zero; 1), `sample_format` (1 unsigned, 2 signed, 3 float).
    """
    photometric, sample_format = tags.get("photometric", 1), tags.get("sample_format", 1)
    values = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1,
        278: height, 279: len(samples), 339: sample_format,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    directory = struct.pack("<H", len(values)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + directory
