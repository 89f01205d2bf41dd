"""Finds the pictures in a folder: one walk for training, preparing and evaluation."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Iterator

from repae_jax.data.decode import unreadable
from repae_jax.errors import UserError

# The suffixes of torchvision's ImageFolder. The content may have any format of `decode.FORMATS`.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_SHOWN = 5  # kinds of files that the warning about left-out files names
_VISITS = 100  # the most visits of one folder through different links
_said: set[str] = set()


class LeftOut:
    """Counts the files that are left out, by kind, with an example of each."""

    def __init__(self):
        self._counts = collections.Counter()
        self._examples = {}

    def add(self, kind: str, path: str) -> None:
        """Count one file."""
        self._counts[kind] += 1
        self._examples[kind] = min(path, self._examples.get(kind, path))

    def say(self, where: str | os.PathLike) -> None:
        """Warn in one line of the files that were left out, if any; each process warns once."""
        if not self._counts:
            return
        ordered = sorted(self._counts, key=lambda kind: (-self._counts[kind], kind))
        kinds = [f"{self._counts[kind]} {kind} ({self._examples[kind]})" for kind in ordered]
        kinds = kinds[:_SHOWN]
        if len(self._counts) > _SHOWN:
            kinds.append(f"{len(self._counts) - _SHOWN} more kinds")
        warn_once(
            f"{where}: {self._counts.total()} left out: {', '.join(kinds)}; pictures are "
            f"{', '.join(SUFFIXES)}"
        )


def warn_once(line: str) -> None:
    """Log a warning, unless this process has logged the same line before."""
    line = line.encode("utf-8", "backslashreplace").decode()  # file names may not be Unicode
    if line not in _said:
        _said.add(line)
        logging.getLogger(__name__).warning("%s", line)


def kind_of(name: str) -> str:
    """The kind of a file that is left out because of its name."""
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without a suffix"


class Walk:
    """Finds the pictures below a folder: regular files with one of `SUFFIXES`.

    Links are followed, except links to a folder above themselves, which would never end. Hidden
    files and folders are left out. A broken link with a picture's name counts as a picture; reading
    it raises, because its disk may return.

    Attributes:
      left_out: the files that were left out so far.
    """

    def __init__(self, root: str | os.PathLike):
        self.left_out = LeftOut()
        self._root = os.fspath(root)
        real = os.path.realpath(self._root)
        above = [real]
        while (parent := os.path.dirname(above[-1])) != above[-1]:
            above.append(parent)
        self._above = frozenset(filter(None, map(_identity, above)))
        self._visits = collections.Counter()

    def folders(self) -> list[str]:
        """The sorted names of the folders in the root; other entries are left out.

        Raises:
          UserError: the root cannot be read.
        """
        found = []
        for entry in self._entries(""):
            if entry.name.startswith("."):
                self.left_out.add("hidden", entry.name)
            elif _is_folder(entry):
                if not self._leads_back(entry, self._above):
                    found.append(entry.name)
            else:
                self.left_out.add("outside of the class folders", entry.name)
        return sorted(found)

    def pictures(self, folder: str = "") -> list[str]:
        """The pictures in a folder of the root and its subfolders, as sorted paths from the root.

        Raises:
          UserError: a folder cannot be read, or links lead to a folder over 100 times.
        """
        found, waiting = [], [(folder, self._above)]
        while waiting:
            folder, above = waiting.pop()
            inside = above | {self._visited(folder)}
            prefix = os.path.join(folder, "")
            for entry in self._entries(folder):
                name = entry.name
                path = prefix + name
                if _is_folder(entry) and name[0] != ".":
                    if not self._leads_back(entry, inside):
                        waiting.append((path, inside))
                elif name[0] == "." or not name.lower().endswith(SUFFIXES):
                    self.left_out.add(kind_of(name), path)
                elif _is_special(entry):
                    self.left_out.add("neither files nor folders", path)
                else:
                    found.append(path)
        return sorted(found)

    def _leads_back(self, entry, above):
        """Whether a folder is a link to a folder above it; such a link is left out."""
        if not entry.is_symlink() or _identity(entry.path) not in above - {None}:
            return False
        self.left_out.add("links to a folder above", os.path.relpath(entry.path, self._root))
        return True

    def _entries(self, folder: str) -> Iterator[os.DirEntry]:
        path = os.path.join(self._root, folder)
        try:
            with os.scandir(path) as entries:
                yield from entries
        except OSError as error:
            raise unreadable(path, error) from error

    def _visited(self, folder):
        path = os.path.join(self._root, folder)
        identity = _identity(path)
        self._visits[identity] += identity is not None
        if self._visits[identity] > _VISITS:
            raise UserError(f"{path}: links lead here over and over; remove those links")
        return identity


def _identity(folder):
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def _is_special(entry):
    """Whether an entry is a pipe, socket or device, whose reading might never end."""
    try:
        return not entry.is_file() and (not entry.is_symlink() or os.path.exists(entry.path))
    except OSError:
        return False
