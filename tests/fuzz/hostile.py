"""Files that were made to do harm, and ones that are odd."""

import functools
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pictures import png

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_ARRAYS = (".npz",)


def names(path: pathlib.Path) -> Sequence[str]:
    """Which of them can stand in the place of this file."""
    if path.suffix in _PICTURES:
        return list(_PICTURE_FILES)
    if path.suffix in _ARRAYS:
        return list(_ARRAY_FILES)
    return list(_WEIGHT_FILES) if path.suffix == ".safetensors" else []


@functools.cache
def content(name: str) -> bytes:
    """The bytes of one of them."""
    return {**_PICTURE_FILES, **_ARRAY_FILES, **_WEIGHT_FILES}[name]()


def _eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


def _tall():
    return png(1, 1_000_000, 8, 0, b"\0\x80" * 1_000_000)


def _bomb():
    return png(20_000, 20_000, 1, 0, bytes(2501) * 20_000)  # 400 million pixels in 50 MB


def _saved(kind, mode="RGB", **options):
    def make():
        from PIL import Image

        buffer = io.BytesIO()
        pixels = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)
        image = Image.fromarray(pixels).convert(mode)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def _chunky():
    """A PNG whose text chunk unpacks to 200 MB."""
    data = b"Comment\0\0" + zlib.compress(bytes(200_000_000))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    plain = png(4, 4, 8, 0, b"\0\1\2\3\4" * 4)
    return plain[:33] + chunk + plain[33:]


_PICTURE_FILES: dict[str, Callable[[], bytes]] = {
    "EPS": _eps,
    "1 x 1,000,000": _tall,
    "20,000 x 20,000": _bomb,
    "text of 200 MB": _chunky,
    "GIF": _saved("GIF"),
    "BMP": _saved("BMP"),
    "TIFF": _saved("TIFF"),
    "TIFF of floats": _saved("TIFF", "F"),
    "TIFF of integers": _saved("TIFF", "I"),
    "PNG of 16 bits": _saved("PNG", "I;16"),
    "PDF": _saved("PDF"),
    "PPM": _saved("PPM"),
    "ICO": _saved("ICO"),
    "JPEG 2000": _saved("JPEG2000"),
    "1 x 1": lambda: png(1, 1, 8, 0, b"\0\1"),
    "0 x 0": lambda: png(0, 0, 8, 0, b""),
    "no rows": lambda: png(16, 16, 8, 2, b""),
    "HTML": lambda: b"<html><body>404 Not Found</body></html>",
}


def _npz(header: str, body: bytes = b"", name: str = "arr_0.npy"):
    def make():
        head = header.encode()
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, head + body)
        return buffer.getvalue()

    return make


def _of_shape(shape, kind="|u1"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


_ARRAY_FILES: dict[str, Callable[[], bytes]] = {
    "10^12 images": _npz(_of_shape("(1000000000000, 4, 4, 3)")),
    "an image of 10^12": _npz(_of_shape("(1, 1000000, 1000000, 3)")),
    "zeros of 3 GB": lambda: _zeros_of(3 * 10**9),
    "negative": _npz(_of_shape("(-1, 4, 4, 3)"), bytes(48)),
    "of objects": _npz(_of_shape("(1,)", "|O"), b"\x80\x04N."),
    "of objects, mu": _npz(_of_shape("(1,)", "|O"), b"\x80\x04N.", "mu.npy"),
    "mu of 10^12": _npz(_of_shape("(1000000000000,)", "<f8"), b"", "mu.npy"),
    "mean of 10^12": _npz(_of_shape("(1000000000000,)", "<f8"), b"", "mean.npy"),
    "code": _npz("__import__('os').abort()\n"),
    "no arrays": lambda: b"PK\x05\x06" + bytes(18),
    "Fortran's order": _npz(_of_shape("(2, 4, 4, 3)").replace("False", "True"), bytes(96)),
    "HTML": lambda: b"<html><body>404 Not Found</body></html>",
}


def _zeros_of(size):
    side = int((size / 3) ** 0.5)
    header = _of_shape(f"(1, {side}, {side}, 3)").encode()
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        file.write(head)
        for _ in range(size // 10**7):
            file.write(bytes(10**7))
    return buffer.getvalue()


def _safetensors(header: bytes, body: bytes = b"", claimed: int | None = None):
    length = len(header) if claimed is None else claimed
    return lambda: length.to_bytes(8, "little") + header + body


_F32 = b'{"x": {"dtype": "F32", "shape": %s, "data_offsets": [0, %s]}}'
_WEIGHT_FILES: dict[str, Callable[[], bytes]] = {
    "header of 2^62 bytes": _safetensors(b"{}", claimed=2**62),
    "header of 2^64 bytes": _safetensors(b"{}", claimed=2**64 - 1),
    "tensor of 4 TB": _safetensors(_F32 % (b"[1000000000000]", b"4000000000000")),
    "overflowing shape": _safetensors(_F32 % (b"[4611686018427387904, 8]", b"0")),
    "no entries": _safetensors(b"{}"),
    "HTML": lambda: b"<html><body>404 Not Found</body></html>",
    "pointer of Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
}


# --- content that torch.save writes; each takes the content that was there -----------------


def _first(content) -> tuple[list, Any]:
    for key, value in content.items():
        if hasattr(value, "dtype") and value.ndim:
            return [key], value
    for key, value in content.items():
        if isinstance(value, dict):
            path, tensor = _first(value)
            if tensor is not None:
                return [key, *path], tensor
    return [], None


def _with_first(content, make):
    path, tensor = _first(content)
    if tensor is None:
        return content
    copied = dict(content)
    node = copied
    for key in path[:-1]:
        node[key] = dict(node[key])
        node = node[key]
    node[path[-1]] = make(tensor)
    return copied


def _expanded(content):
    return _with_first(content, lambda tensor: tensor.flatten()[:1].expand(10**12))


def _expanded_same_rank(content):
    def make(tensor):
        shape = [10**5] * min(2, tensor.ndim) + [1] * (tensor.ndim - 2)
        return tensor.flatten()[:1].reshape([1] * tensor.ndim).expand(shape)

    return _with_first(content, make)


def _cyclic(content):
    inner = dict(content)
    inner["x"] = inner
    return inner


def _cyclic_list(content):
    loop = []
    loop.append(loop)
    return {**content, "args": loop}


def _deep(content):
    nested: Any = 1
    for _ in range(900):
        nested = {"x": nested}
    return {**content, "x": nested}


def _exploding(content):
    nested: Any = {"y": 1}
    for _ in range(40):
        nested = {"a": nested, "b": nested}
    return {**content, "x": nested}


def _exploding_list(content):
    nested: Any = [1]
    for _ in range(40):
        nested = [nested, nested]
    return {**content, "args": {"repae_jax": nested, "model": nested}}


def _sparse(content):
    return _with_first(content, lambda tensor: tensor.to_sparse())


def _quantised(content):
    import torch

    return _with_first(
        content, lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    )


def _meta(content):
    return _with_first(content, lambda tensor: tensor.to("meta"))


def _parameters(content):
    import torch

    return _with_first(content, lambda tensor: torch.nn.Parameter(tensor, requires_grad=False))


PICKLED: dict[str, Callable[[Any], Any]] = {
    "a stride of 0": _expanded,
    "a stride of 0, same rank": _expanded_same_rank,
    "a cycle": _cyclic,
    "a list in itself": _cyclic_list,
    "900 deep": _deep,
    "2^40 dicts": _exploding,
    "2^40 lists": _exploding_list,
    "sparse": _sparse,
    "quantised": _quantised,
    "without data": _meta,
    "parameters": _parameters,
    "numbers for names": lambda content: {number: v for number, v in enumerate(content.values())},
    "a number among names": lambda content: {**content, 0: 1},
    "None among names": lambda content: {**content, None: 1},
    "a list": lambda content: list(content.values()),
    "nothing": lambda content: {},
    "texts": lambda content: {key: "x" for key in content},
    "nulls": lambda content: {key: None for key in content},
}
