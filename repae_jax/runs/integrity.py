"""Whether the files of a checkpoint are what they were when it was saved."""

import json
import pathlib

from repae_jax.errors import UserError
from repae_jax.utils.checksums import (
    Damaged,
    EarlyChecksums,
    check_folder,
    check_size,
    write_checksums,
)

MARK = "checksums"  # in the metadata that Orbax keeps of a checkpoint that has them
METADATA = "_CHECKPOINT_METADATA"  # that file; Orbax adds the time to it when all is written
_SIZES = "sizes.json"  # beside checkpoints from before they had


class Sums:
    """The checksums of a checkpoint that is being written."""

    def __init__(self):
        self._ahead: EarlyChecksums | None = None

    def begin(self, checkpoints: pathlib.Path, step: int) -> None:
        """Sum what appears of the checkpoint of `step`, while it is in memory."""

        def files():
            return (path for folder in self._folders() for path in folder.rglob("*"))

        self.close()
        # Until all is written, Orbax adds to the folder's name.
        self._folders = lambda: checkpoints.glob(f"{step}.*")
        self._ahead = EarlyChecksums(files)

    def write(self) -> None:
        """Write them; when all is there but the time, and before the folder has its last name."""
        self._ahead.close()
        for folder in self._folders():
            write_checksums(folder, but=(METADATA,), of=self._ahead.of)

    def close(self) -> None:
        """End what `begin` began."""
        if self._ahead is not None:
            self._ahead.close()


def check_checkpoint(folder: pathlib.Path, part: int = 0, parts: int = 1) -> bool:
    """Compare a checkpoint's files with their checksums, or with what else was noted of them.

    Returns:
      Whether it has checksums: those of versions before have none.

    Args:
      folder: the checkpoint.
      part: of several processes that each compare a share, which this is.
      parts: how many there are.

    Raises:
      UserError: a file is missing or has another content.
    """
    try:
        if check_folder(folder, part, parts):
            return True
        if MARK in _entry(_read(folder / METADATA), "custom_metadata"):
            raise Damaged("its checksums are missing")
        for name, size in _entry(_read(folder.parent / _SIZES), folder.name).items():
            check_size(folder / name, name, size)
        return False
    except Damaged as error:
        raise UserError(f"checkpoint {folder} is damaged: {error}") from error


def _read(path):
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # not there, or damaged itself: reading the checkpoint will tell


def _entry(content, key):
    entry = content.get(key) if isinstance(content, dict) else None
    return entry if isinstance(entry, dict) else {}
