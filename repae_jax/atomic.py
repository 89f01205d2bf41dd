"""Writing files and folders so that nobody ever sees half of one."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from repae_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` to write to; renamed to it when the block ends well.

    Serves files and folders; parent folders are made as needed. If the block raises, the
    temporary is removed and what was at `path` stays as it was.

    Raises:
      UserError: it cannot be written there, or a folder with content stands at `path`.
    """
    path = pathlib.Path(path)
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


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
