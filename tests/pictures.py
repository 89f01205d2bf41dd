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
