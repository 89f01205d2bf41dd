"""Whether weight files hold what was written: our checksum in .safetensors, CRC-32 in PyTorch's."""

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
    """The metadata of a file with these tensors: `notes`, and a checksum of all."""
    notes = plain_notes(notes)
    return {**notes, CHECKSUM: tensors_checksum(tensors, notes)}


def plain_notes(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A file's metadata without the checksum."""
    return {name: text for name, text in (metadata or {}).items() if name != CHECKSUM}


def sort_notes(path: pathlib.Path) -> None:
    """Bring a .safetensors file's metadata, which its library writes in any order, into one."""
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
    """Raise UserError unless a file holds what its checksum is of; without one it is taken."""
    wanted = (metadata or {}).get(CHECKSUM)
    if wanted is not None and wanted != tensors_checksum(tensors, plain_notes(metadata)):
        raise UserError(
            f"{path}: damaged, it holds other values than were written; copy or make it again"
        )


def check_archive(path: str | os.PathLike) -> bool:
    """Compare every part of a PyTorch file with its CRC-32, which torch does not.

    Where PyTorch was told to compute none it writes 0: such parts are taken. It compresses none.

    Returns:
      whether the file is an archive; those before torch 1.6 are not.

    Raises:
      UserError: a part is damaged.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch tells
            return False
    status = os.stat(path)
    _check_archive(os.fspath(path), status.st_size, status.st_mtime_ns)
    return True


@functools.lru_cache(maxsize=64)
def _check_archive(path, size, time):
    """Once for a file, which several readers may open one after the other."""
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
    """zipfile compares the checksum at the end."""
    with archive.open(part) as file:
        while file.read(1 << 20):
            pass
