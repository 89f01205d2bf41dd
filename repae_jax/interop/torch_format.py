"""Writes PyTorch's file format without PyTorch: a zip of one pickle and every tensor's bytes.

    archive/data.pkl     the content; a tensor is a call of torch._utils._rebuild_tensor_v2
    archive/byteorder    "little"
    archive/data/K       the bytes of tensor K, at an offset of the file that 64 divides
    archive/version      "3"

`torch.load(weights_only=True)` reads and maps such files. Equal content gives equal bytes.
"""

import argparse
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first time: constant, so that bytes are equal
_ALIGNMENT = 64
_HEADER = 30  # bytes of a zip member's own header before its name
_ZIP64 = 20  # bytes that zipfile adds to a header for sizes over 4 GiB
_STORAGES = {  # type -> its storage class; newer types share UntypedStorage
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "bool": "Bool", "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip


def write(file: BinaryIO | os.PathLike | str, content: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of arrays and plain values as `torch.save` would.

    Arrays become tensors; an argparse.Namespace stays a Namespace.

    Raises:
      TypeError: a value is of another type.
      OSError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    pickled = b"".join([b"\x80\x02", *_pickled(content, arrays), b"."])
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", pickled)
        _add(archive, "byteorder", sys.byteorder.encode())
        for number, array in enumerate(arrays):
            _add(archive, f"data/{number}", _bytes(array))
        _add(archive, "version", b"3\n")


def _add(archive, name, data):
    info = zipfile.ZipInfo(f"archive/{name}", _EPOCH)
    begins = archive.fp.tell() + _HEADER + len(info.filename) + _ZIP64 + 4
    padding = -begins % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)  # as PyTorch pads its own
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(data)


def _bytes(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _pickled(value, arrays) -> Iterator[bytes]:
    """The pickle instructions (protocol 2) for `value`; its arrays are appended to `arrays`."""
    if isinstance(value, np.ndarray):
        yield from _tensor(value, arrays)
    elif isinstance(value, Mapping):
        yield b"}("
        for key, item in value.items():
            yield _plain(key)
            yield from _pickled(item, arrays)
        yield b"u"
    elif isinstance(value, list):
        yield b"]("
        for item in value:
            yield from _pickled(item, arrays)
        yield b"e"
    elif isinstance(value, argparse.Namespace):
        yield _name("argparse", "Namespace") + b")\x81"
        yield from _pickled(vars(value), arrays)
        yield b"b"
    else:
        yield _plain(value)


def _tensor(array, arrays):
    """The call of the PyTorch function that makes the tensor from its numbered storage."""
    kind, key = array.dtype.name, str(len(arrays))
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    layout = b"".join(map(_plain, (0, tuple(array.shape), tuple(strides), False)))
    layout += _name("collections", "OrderedDict") + b")R"  # an empty dict of hooks
    arrays.append(array)
    if kind in _STORAGES:
        storage = _storage(_name("torch", f"{_STORAGES[kind]}Storage"), key, array.size)
        yield _name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + layout + b"tR"
        return
    storage = _storage(_name("torch.storage", "UntypedStorage"), key, array.nbytes)
    yield _name("torch._utils", "_rebuild_tensor_v3") + b"(" + storage + layout
    yield _name("torch", kind) + b"tR"


def _storage(storage_class, key, size):
    parts = (_plain("storage"), storage_class, _plain(key), _plain("cpu"), _plain(size))
    return b"(" + b"".join(parts) + b"tQ"


def _name(module, name):
    return f"c{module}\n{name}\n".encode()


def _plain(value):
    """The pickle instructions for a plain value, without PROTO and STOP."""
    if not _is_plain(value):
        raise TypeError(f"a {type(value).__name__} cannot be kept in a PyTorch file")
    return pickle.dumps(value, protocol=2)[2:-1]


def _is_plain(value):
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
