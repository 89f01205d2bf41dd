"""Writing files and folders so that nobody ever sees half of one; `lock` lets one process write."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from repae_jax.errors import UserError

_TEMPORARY_NAME = re.compile(r"\.(.+)\.\d+\.tmp")  # as `replacing` makes them


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` to write to; renamed to it when the block ends well.

    Serves files and folders; parent folders are made as needed. If the block raises, the
    temporary is removed and what was at `path` stays as it was.

    Raises:
      UserError: it cannot be written there, or a folder with content stands at `path`.
    """
    path = pathlib.Path(path)
    if not path.name:
        raise UserError(f"{path} names no file or folder that could be written: give another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            _remove(temporary)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or permit it "
            "there, or choose another folder"
        ) from error


def write_atomically(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Write a file through `replacing`; returns its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return pathlib.Path(path)


def check_writable(path: str | os.PathLike) -> None:
    """Raise UserError, before the work, if `write_atomically` could not write there."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    missing = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(missing, os.W_OK | os.X_OK) or not missing.is_dir():
        raise UserError(f"{path} cannot be written: permit it, or choose another folder")


def entries(folder: pathlib.Path) -> list[str]:
    """The names in a folder; none if there is no folder.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error


def remove_temporaries(folder: pathlib.Path, own: Callable[[str], object]) -> None:
    """Delete what killed runs left of files in `folder` whose names `own` knows."""
    for name in entries(folder):
        wanted = _TEMPORARY_NAME.fullmatch(name)
        if wanted and own(wanted[1]):
            (folder / name).unlink(missing_ok=True)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
