"""Integrity checks of weight files: our checksum in .safetensors, CRC-32 in PyTorch's files."""

import functools
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from repae_jax.errors import UserError, first_line
from repae_jax.utils.checksums import tensors_checksum

CHECKSUM = "repae_jax.xxh3_128"  # in a .safetensors file's metadata; other readers ignore it


def sealed_notes(tensors: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file with these tensors: `notes`, and a checksum of tensors and notes."""
    notes = plain_notes(notes)
    return {**notes, CHECKSUM: tensors_checksum(tensors, notes)}


def plain_notes(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A file's metadata without the checksum."""
    return {name: text for name, text in (metadata or {}).items() if name != CHECKSUM}


def sort_notes(path: pathlib.Path) -> None:
    """Sort a .safetensors file's metadata, which safetensors writes in an arbitrary order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def check_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
) -> None:
    """Raise UserError if a file's tensors do not match its checksum; a file may lack one."""
    expected = (metadata or {}).get(CHECKSUM)
    if expected is not None and expected != tensors_checksum(tensors, plain_notes(metadata)):
        raise UserError(
            f"{path}: damaged, it holds other values than were written; copy or make it again"
        )


def check_archive(path: str | os.PathLike) -> bool:
    """Compare every part of a PyTorch file with its CRC-32, which torch itself does not check.

    A CRC-32 of 0 means that PyTorch was set to compute none; such parts are accepted. PyTorch never
    compresses parts.

    Returns:
      whether the file is a zip archive; files from before torch 1.6 are not.

    Raises:
      UserError: a part is damaged.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # torch's own test
            return False
    status = os.stat(path)
    _check_archive(os.fspath(path), status.st_size, status.st_mtime_ns)
    return True


@functools.lru_cache(maxsize=64)
def _check_archive(path, size, time):
    """Check a file once, though several readers may open it one after the other."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [
                part for part in archive.infolist() if part.compress_type == zipfile.ZIP_STORED
            ]
            if sum(part.file_size for part in parts) > size:
                raise zipfile.BadZipFile("its parts overlap")
            for part in parts:
                if part.CRC:
                    _read_through(archive, part)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable weights-only PyTorch file: damaged ({first_line(error)}); "
            "copy or make it again"
        ) from error


def _read_through(archive, part):
    """Read a part to its end, where zipfile compares the checksum."""
    with archive.open(part) as file:
        while file.read(1 << 20):
            pass
