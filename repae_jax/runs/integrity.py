"""Checksums of a checkpoint's files, to detect damage after saving."""

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

MARK = "checksums"  # key in Orbax's metadata that marks a checkpoint with checksums
METADATA = "_CHECKPOINT_METADATA"  # Orbax's metadata file; Orbax adds the time at the very end
_SIZES = "sizes.json"  # file sizes of checkpoints from versions without checksums


class Sums:
    """The checksums of a checkpoint that is being written."""

    def __init__(self):
        self._ahead: EarlyChecksums | None = None

    def begin(self, checkpoints: pathlib.Path, step: int) -> None:
        """Start to compute checksums of the checkpoint's files as they appear.

        Files that were just written are still in the page cache.
        """

        def files():
            return (path for folder in self._folders() for path in folder.rglob("*"))

        self.close()
        # Orbax writes to a folder with a longer name until the checkpoint is complete.
        self._folders = lambda: checkpoints.glob(f"{step}.*")
        self._ahead = EarlyChecksums(files)

    def write(self) -> None:
        """Write the checksums.

        Call it when all files are complete except for the time in Orbax's metadata, before the
        folder gets its final name.
        """
        self._ahead.close()
        for folder in self._folders():
            write_checksums(folder, but=(METADATA,), of=self._ahead.of)

    def close(self) -> None:
        """Stop the thread that `begin` started."""
        if self._ahead is not None:
            self._ahead.close()


def check_checkpoint(folder: pathlib.Path, part: int = 0, parts: int = 1) -> bool:
    """Compare a checkpoint's files with their checksums, or in early versions with their sizes.

    `parts` processes can share the work: each compares its part of the files.

    Args:
      folder: the checkpoint.
      part: the number of this process, from 0.
      parts: the number of processes.

    Returns:
      Whether the checkpoint has checksums; early versions wrote none.

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
        return {}  # missing, or damaged itself: reading the checkpoint reports it


def _entry(content, key):
    entry = content.get(key) if isinstance(content, dict) else None
    return entry if isinstance(entry, dict) else {}
