"""Finds the samples of a tar of pictures with captions (WebDataset's layout) by its headers.

A sample is a picture (`jpg`, `jpeg`, `png` or `webp`) and a `txt` that follow each other in a tar
and have one key: their path up to the first dot.
"""

import io
import pathlib
import re
import tarfile
import typing
from collections.abc import Iterator

from repae_jax.data.decode import unreadable

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTION = "txt"
_KEY = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own entries
_LARGEST_HEADER = 1 << 20  # bytes of a long name or of extended headers
_DOTTED = None  # the key, beside kinds of files, of pictures and captions behind a further dot


class Row(typing.NamedTuple):
    """A row of the index: which tar, and the places of picture and caption, in bytes.

    A size of -1 stands for a part that is missing. A tar that cannot be read on has one last row
    with both. So has a key without either part whose files are a picture or caption behind a
    further dot, which are no sample; `picture` is then the place of the first.
    """

    tar: int
    picture: int
    picture_size: int
    caption: int
    caption_size: int


def rows_of(tar: pathlib.Path, number: int = 0) -> Iterator[Row]:
    """The index of one tar, in the order of its samples; entries of other kinds are left out."""
    size, key, parts = tar.stat().st_size, None, {}
    try:
        with _Headers(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.size < 0 or _is_sparse(member):
                    raise tarfile.ReadError("it has a file of negative size, or one with holes")
                name = _KEY.fullmatch(member.name)
                if not member.isreg() or not name or _META.match(member.name):
                    continue
                suffix = name[2].lower()
                kind = "picture" if suffix in PICTURES else suffix
                if name[1] != key or kind in parts:
                    yield from _row(number, parts)
                    key, parts = name[1], {}
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("it is cut short")
                if kind in ("picture", CAPTION):
                    parts[kind] = (member.offset_data, member.size)
                elif kind.rpartition(".")[2] in (*PICTURES, CAPTION):
                    parts.setdefault(_DOTTED, (member.offset_data, -1))
                archive.members = []  # tarfile would keep every header
            if not _ends_at(tar, archive.offset):
                raise tarfile.ReadError("it is cut between two of its files")
        yield from _row(number, parts)
    except (tarfile.TarError, ValueError, EOFError, IndexError, RecursionError):
        yield from _row(number, parts)
        yield Row(number, 0, -1, 0, -1)
    except OSError as error:
        raise unreadable(tar, error) from error


class _Headers(io.BufferedReader):
    """A tar's file, whose headers `tarfile` reads: damaged ones ask for any place and any memory.

    Raises `tarfile.ReadError` for a place outside of the file and for a header over 1 MiB.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and not 0 <= place <= self._end:
            raise tarfile.ReadError("it is cut short")
        return super().seek(place, whence)


def _is_sparse(member):
    """Whether a file's holes are left out of the tar, so that its content lies in parts."""
    return member.issparse() or any(key.startswith("GNU.sparse.") for key in member.pax_headers)


def _ends_at(tar, place):
    """Whether a tar has its block of zeros there, which ends it."""
    with open(tar, "rb") as file:
        file.seek(place)
        return file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE


def _row(number, parts):
    if parts:
        lost = parts.get(_DOTTED, (0, -1)) if len(parts) == 1 else (0, -1)
        yield Row(number, *parts.get("picture", lost), *parts.get(CAPTION, (0, -1)))
