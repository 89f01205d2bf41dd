"""Atomic writes: a file or folder appears complete or not at all. `lock` keeps it to one writer."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

from repae_jax.errors import UserError

_TEMPORARY_NAME = re.compile(r"\.(.+)\.\d+\.tmp")  # the names that `replacing` gives


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block may write a file or a folder; missing parent folders are made. If the block raises,
    the temporary file is removed and `path` stays as it was.

    Raises:
      UserError: `path` cannot be written, or is a folder with content.
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
    """Write a file through `replacing`; return its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return pathlib.Path(path)


def check_writable(path: str | os.PathLike) -> None:
    """Raise UserError if `write_atomically` cannot write to `path`; call it before the work."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    missing = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(missing, os.W_OK | os.X_OK) or not missing.is_dir():
        raise UserError(f"{path} cannot be written: permit it, or choose another folder")


def entries(folder: pathlib.Path) -> list[str]:
    """The names in a folder; empty if the folder does not exist.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; choose another folder") from error


def remove_temporaries(folder: pathlib.Path, own: Callable[[str], object]) -> None:
    """Delete the temporary files of killed runs in `folder` whose final names `own` accepts."""
    for name in entries(folder):
        match = _TEMPORARY_NAME.fullmatch(name)
        if match and own(match[1]):
            (folder / name).unlink(missing_ok=True)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
