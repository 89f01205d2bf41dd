"""Changes of files: of their bytes, and of what JSON, PyTorch's and safetensors' files hold.

A case is a list, [file, change, *arguments], that says all: applied twice it gives the same bytes.
"""

import contextlib
import pathlib
import random
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from fuzz import contents, hostile

Case = list[Any]


def apply(folder: pathlib.Path, case: Case) -> None:
    """Change a file below `folder`."""
    file, change, *arguments = case
    path = folder / file
    if change in _BYTES:
        _BYTES[change](path, *arguments)
    elif change == "hostile":
        path.write_bytes(hostile.content(arguments[0]))
    else:
        content = contents.load(path)
        contents.store(path, contents.EDITS[change](content, *arguments))


def changes(path: pathlib.Path, file: str, rng: random.Random) -> Iterator[Case]:
    """Every edit of what the file holds, in random order, and among them its bytes' for ever."""
    edits = [["missing"], ["folder"], ["dangling"], ["cut", 0], ["append", 1], ["append", 4096]]
    with contextlib.suppress(Exception):  # of another kind
        edits += contents.edits_of(
            contents.load(path), tensors=path.suffix in contents.TENSOR_SUFFIXES
        )
    edits += [["hostile", name] for name in hostile.names(path)]
    if path.suffix in (".json", ".jsonl", ".txt"):
        edits += [["text", name] for name in _TEXTS]
    rng.shuffle(edits)
    size = path.stat().st_size
    while True:
        if edits:
            yield [file, *edits.pop()]
        yield [file, *_byte_change(size, rng)]


def _byte_change(size, rng):
    if not size:
        return ["append", rng.randrange(1, 64)]
    near = rng.choice((0, size, None))  # headers and directories stand at both ends
    place = rng.randrange(size) if near is None else abs(near - 1 - rng.randrange(min(size, 256)))
    place = min(place, size - 1)
    kind = rng.choice(("cut", "flip", "flip", "flip", "zero", "append"))
    return {
        "cut": ["cut", place],
        "flip": ["flip", place, rng.randrange(8)],
        "zero": ["zero", place, rng.choice((1, 8, 64, 512))],
        "append": ["append", rng.randrange(1, 600)],
    }[kind]


# --- bytes -----------------------------------------------------------------------------------


def _rewrite(function):
    def change(path, *arguments):
        path.write_bytes(function(path.read_bytes(), *arguments))

    return change


def _flipped(data, place, bit):
    changed = bytearray(data)
    changed[min(place, len(data) - 1)] ^= 1 << bit
    return bytes(changed)


def _zeroed(data, place, length):
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def _appended(data, length):
    return data + random.Random(length).randbytes(length)


def _folder(path):
    path.unlink()
    path.mkdir()


def _dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


_TEXTS = {
    "deep list": lambda text: b"[" * 100_000 + b"]" * 100_000,
    "deep object": lambda text: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "long number": lambda text: text.replace(b"1", b"1" * 10_000, 1),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "Latin 1": lambda text: text.replace(b'"', b'"\xe9', 1),
    "zeros": lambda text: bytes(len(text)),
    "list": lambda text: b"[" + text + b"]",
    "string": lambda text: b'"text"',
    "number": lambda text: b"3",
    "null": lambda text: b"null",
    "twice": lambda text: text + text,
    "carriage returns": lambda text: text.replace(b"\n", b"\r\n"),
}

_BYTES = {
    "cut": _rewrite(lambda data, length: data[:length]),
    "flip": _rewrite(_flipped),
    "zero": _rewrite(_zeroed),
    "append": _rewrite(_appended),
    "text": _rewrite(lambda data, name: _TEXTS[name](data)),
    "missing": pathlib.Path.unlink,
    "folder": _folder,
    "dangling": _dangling,
}


def raw_bytes(path: pathlib.Path) -> list[range]:
    """Where a tensor file's plain numbers stand, which no checksum of its format covers."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return [range(8 + int.from_bytes(data[:8], "little"), len(data))]
    if path.suffix not in contents.TENSOR_SUFFIXES or not zipfile.is_zipfile(path):
        return []
    ranges = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if "/data/" in member.filename:
                name, extra = (
                    int.from_bytes(data[member.header_offset + at :][:2], "little")
                    for at in (26, 28)
                )
                start = member.header_offset + 30 + name + extra
                ranges.append(range(start, start + member.file_size))
    return ranges


def covers(original: pathlib.Path, changed: pathlib.Path) -> bool:
    """Whether two files of the same length differ in plain numbers, which nobody can miss.

    What else a block of zeros has overwritten between two tensors does not count.
    """
    before, after = (np.fromfile(path, np.uint8) for path in (original, changed))
    if before.size != after.size:
        return False
    plain = np.zeros(before.size, bool)
    for part in raw_bytes(original):
        plain[part.start : part.stop] = True
    return bool(plain[before != after].any())


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """A fresh copy."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
