"""Checksums of folders of files and of named arrays: 128-bit XXH3, which is faster than the disk.

docs/performance.md compares the candidates.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np
import xxhash

from repae_jax.errors import UserError
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import read_json
from repae_jax.utils.sealed import seal, unseal

FILE = "checksums.json"
_BLOCK = 1 << 20  # bytes read at a time: few enough for the processor's cache
_PAUSE = 0.2  # seconds between two searches for new files


class Damaged(Exception):
    """A file whose content has changed or is missing; the message names it."""


class EarlyChecksums:
    """Computes checksums in a thread, while other files are written and these are still in memory.

    A file whose size or time changes afterwards is read again.
    """

    def __init__(self, find: Callable[[], Iterable[pathlib.Path]]):
        """Start the thread, which calls `find` every 0.2 s for the files that exist."""
        self._find = find
        self._known: dict[tuple[int, ...], tuple[int, str]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; the checksums so far are kept."""
        self._done.set()
        self._thread.join()

    def of(self, path: pathlib.Path) -> tuple[int, str]:
        """The current size in bytes and checksum of a file."""
        return self._known.get(_identity(path)) or _size_and_checksum(path)

    def _work(self):
        before = set()
        while not self._done.wait(_PAUSE):
            now = set()
            with contextlib.suppress(OSError):  # renamed or removed meanwhile
                for path in filter(pathlib.Path.is_file, self._find()):
                    now.add(identity := _identity(path))
                    if identity in before and identity not in self._known:
                        found = _size_and_checksum(path, stop=self._done)
                        if _identity(path) == identity and not self._done.is_set():
                            self._known[identity] = found
            before = now


def write_checksums(
    folder: pathlib.Path,
    but: Container[str] = (),
    of: Callable[[pathlib.Path], tuple[int, str]] | None = None,
) -> None:
    """Write the size and checksum of every file of a folder to `FILE` in that folder.

    Args:
      folder: the folder.
      but: names of files to leave out.
      of: path -> (size, checksum), such as `EarlyChecksums.of`; by default the file is read.
    """
    files = {name: folder / name for name in _names(folder) if name not in but}
    with _threads() as pool:
        found = dict(zip(files, pool.map(of or _size_and_checksum, files.values()), strict=True))
    content = json.dumps(seal({"algorithm": "xxh3_128", "files": found}), indent=0)
    write_atomically(folder / FILE, content.encode())


def check_folder(folder: pathlib.Path, part: int = 0, parts: int = 1) -> bool:
    """Compare a folder with its checksums; return whether it has checksums.

    Files that were added later are ignored.

    Args:
      folder: the folder.
      part: index of this call among `parts` calls, each of which compares a share of the files.
      parts: the number of such calls.

    Raises:
      Damaged: a file is missing or its content has changed.
    """
    path = folder / FILE
    if not path.is_file():
        return False
    try:
        content, untouched = unseal(read_json(path, dict[str, Any]))
    except UserError as error:
        raise Damaged(f"{FILE} is damaged") from error
    files = content.get("files")
    if not (untouched and isinstance(files, dict) and all(map(_is_sum, files.values()))):
        raise Damaged(f"{FILE} is damaged")
    largest_first = sorted(files, key=lambda name: -files[name][0])
    with _threads() as pool:
        list(pool.map(lambda name: _check(folder, name, *files[name]), largest_first[part::parts]))
    return True


def _is_sum(noted):
    """Whether an entry is [size, checksum]."""
    return isinstance(noted, list) and list(map(type, noted)) == [int, str]


def tensors_checksum(tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> str:
    """One checksum of arrays with their names, types and shapes, and of a file's metadata."""
    total = xxhash.xxh3_128(json.dumps(sorted(notes.items())).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        total.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        total.update(memoryview(array.reshape(-1).view(np.uint8)))
    return total.hexdigest()


def check_size(path: pathlib.Path, name: str, size: int) -> None:
    """Raise Damaged if a file is missing or has another size; the message calls it `name`."""
    if not path.is_file():
        raise Damaged(f"its file {name} is missing")
    if path.stat().st_size != size:
        raise Damaged(f"its file {name} is not {size} bytes long any more")


def _threads():
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _names(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [str(path.relative_to(folder)) for path in files if path.name != FILE]


def _identity(path):
    """A key that changes with a file's content, and stays when the file is renamed."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _size_and_checksum(path, stop=None):
    total, size = xxhash.xxh3_128(), 0
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            total.update(block[:count])
            size += count
            if stop is not None and stop.is_set():
                break
    return size, total.hexdigest()


def _check(folder, name, size, checksum):
    path = folder / name
    check_size(path, name, size)
    try:
        found = _size_and_checksum(path)[1]
    except OSError as error:
        raise Damaged(f"its file {name} cannot be read ({error.strerror})") from error
    if found != checksum:
        raise Damaged(f"its file {name} has another content")
