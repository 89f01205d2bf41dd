"""Skips images that cannot be decoded: `config.data.on_bad_image = "skip"`."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
import threading
from collections.abc import Callable

import numpy as np

from repae_jax.data.crop import RandomWindow
from repae_jax.data.identity import Fingerprint
from repae_jax.data.source import Source
from repae_jax.errors import BadImage, UserError

# Shared by the threads that prefetch. Not an attribute of the source, which must be picklable.
_listing = threading.Lock()
_LEFT_OUT = -1  # in the place of an index: what the source left out


@dataclasses.dataclass(frozen=True, eq=False)
class SkippingSource:
    """A source in which the next readable image takes the place of a bad image.

    The next image is the next in index order; the first follows the last. So the image of an index
    depends on the data only, and the stream stays the same in every process and after a restart.
    Each process logs a bad image once, and `listing` names it once, with what the source itself has
    left out (`left_out`).

    Attributes:
      source: the source of the images.
      listing: a file for the names of bad images, one per line (see `read_listing`); "" for none.
    """

    source: Source
    listing: str = ""
    _noted: set[int] = dataclasses.field(default_factory=set, repr=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._first_readable(index, self.source.__getitem__)

    def read(self, index: int, window: RandomWindow | None = None) -> dict[str, np.ndarray]:
        """The source's `read`, which sources of random crops have."""
        return self._first_readable(index, functools.partial(self.source.read, window=window))

    def _first_readable(self, index, read):
        self._list_left_out()
        for candidate in (*range(index, len(self)), *range(index)):
            try:
                return read(candidate)
            except BadImage as error:
                self._note(candidate, error)
        raise UserError(
            f"{self.name}: none of its {len(self)} images is readable; see the warnings, then "
            "correct --config.data.path"
        )

    @property
    def caption(self) -> Callable[[int], str] | None:
        """The source's method of this name; None without captions."""
        return getattr(self.source, "caption", None)

    def image_name(self, index: int) -> str:
        return self.source.image_name(index)

    def fingerprint(self) -> Fingerprint:
        return self.source.fingerprint()

    def _note(self, index, error):
        with _listing:
            if index in self._noted:
                return
            self._noted.add(index)
            logging.getLogger(__name__).warning("skipped: %s", error)
            if self.listing:
                _list(pathlib.Path(self.listing), [self.image_name(index)])

    def _list_left_out(self):
        names = getattr(self.source, "left_out", ())
        if not names or _LEFT_OUT in self._noted:
            return
        with _listing:
            self._noted.add(_LEFT_OUT)
            if self.listing:
                _list(pathlib.Path(self.listing), names)


def read_listing(path: str | pathlib.Path) -> list[str]:
    """The names of bad images that all processes and runs have written to a listing, in order.

    Raises:
      UserError: the listing cannot be read.
    """
    if not pathlib.Path(path).exists():
        return []
    try:
        text = pathlib.Path(path).read_text("utf-8", "surrogateescape")
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); permit or remove it"
        raise UserError(f"{path}: {reason}") from error
    # two processes may have written the same image at the same time
    return list(dict.fromkeys(text.splitlines()))


def _list(path, names):
    try:
        known = set(read_listing(path))
        lines = "".join(f"{name}\n" for name in names if name not in known)
        if not lines:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # one write in append mode: lines of several processes do not mix
        with open(path, "ab", buffering=0) as file:
            file.write(lines.encode("utf-8", "surrogateescape"))
    except OSError as error:
        logging.getLogger(__name__).warning("%s: cannot be written (%s)", path, error.strerror)
    except UserError as error:
        logging.getLogger(__name__).warning("%s", error)
