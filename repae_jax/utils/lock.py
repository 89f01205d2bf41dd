"""One writer at a time: locks on folders and files, across processes and hosts.

A lock is a small file that names its holder (see `holder`). On a local disk and on NFS the
system's flock decides who holds it, and frees the lock however its process ends. Where flock does
not reach other hosts (gcsfuse) or does not exist, the content decides: the holder renews it every
few seconds, and a holder that stops counts as dead. A suspended process that was taken for dead
finds another holder's token in the file and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import os
import pathlib
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from repae_jax.errors import UserError
from repae_jax.utils.holder import SIZE, Holder, describe_holder, parse, this_process

NAME = ".lock"  # the name of a folder's lock


@dataclasses.dataclass(frozen=True)
class Times:
    """The intervals of a lock, in seconds.

    Attributes:
      beat: between two renewals by the holder.
      patience: after this long without a renewal, a holder on another host counts as dead.
        gcsfuse may show a host a content that is 60 s old.
      look: between two looks of a waiting process for a renewal.
    """

    beat: float = 10.0
    patience: float = 90.0
    look: float = 1.0


TIMES = Times()
# When a new holder first looks at its lock again, in beats: two hosts that began at the same moment
# may both have written it.
_SOON = (0.02, 0.05, 0.1, 0.2, 0.5)
_TRIES = 10  # attempts to open a file in a folder that another process may be removing


@contextlib.contextmanager
def writing_in(folder: pathlib.Path, times: Times | None = None) -> Iterator[Lock]:
    """Lock a folder against other processes during the block.

    Missing folders are made, and removed again at the end if they are still empty.

    Raises:
      UserError: another process holds the folder, or it cannot be written.
    """
    with _held(folder / NAME, folder, times) as lock:
        yield lock


@contextlib.contextmanager
def writing(path: pathlib.Path, times: Times | None = None) -> Iterator[Lock]:
    """Lock `path`, a future file or folder, by a lock file beside it during the block.

    Raises:
      UserError: another process holds the lock, or it cannot be written.
    """
    there = pathlib.Path(os.path.abspath(path))
    if not there.name:
        raise UserError(f"{path} cannot be written: name a file or a folder in it")
    with _held(there.with_name(f".{there.name}{NAME}"), path, times) as lock:
        yield lock


@contextlib.contextmanager
def _held(path, what, times):
    with contextlib.closing(Lock(path, what, times or TIMES)) as lock:
        lock.take()
        yield lock


class Lock:
    """A lock, held from `take` to `close`."""

    def __init__(self, path: pathlib.Path, what: pathlib.Path, times: Times):
        """Prepare a lock; `take` acquires it.

        Args:
          path: the lock's file.
          what: the file or folder that it protects, for messages.
          times: see `Times`.
        """
        self._path, self._what, self._times = path, what, times
        self._file: BinaryIO | None = None
        self._made: list[pathlib.Path] = []
        self._own: Holder | None = None
        self._taker: Holder | None = None
        self._renewed = 0.0
        self._renewing, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another process had taken the lock when this one last looked."""
        return self._taker is not None

    def take(self) -> None:
        """Acquire the lock, and renew it in a thread.

        Raises:
          UserError: another process holds the lock, or the file cannot be written.
        """
        with _writable(self._path):
            self._open()
            while not self._is_free():
                self._file.close()
                self._open()
            own = this_process(secrets.token_hex(8), _identity(self._file))
            try:
                self._write(own)
            except OSError as error:
                content = _read(self._path)
                if error.errno == errno.ESTALE:  # gcsfuse: another host has just written it
                    raise self._refusal(content) from error
                if not content:
                    self._path.unlink(missing_ok=True)
                raise
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the lock; free of cost while renewals succeed.

        Raises:
          UserError: another process has taken the lock.
        """
        if time.time() - self._renewed > self._times.patience / 2:  # it may have been suspended
            self._renew()
        if self.lost:
            raise UserError(
                f"{self._what}: another process has taken over writing there ({self._taker}), "
                f"since it saw no sign of this one for {self._times.patience:g} s; this one ends"
            )

    def close(self) -> None:
        """Release the lock and remove its file, unless another process has taken it."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(self._times.beat)
        with contextlib.suppress(OSError):
            if self._own is not None and self._is_mine():
                self._path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
        for folder in self._made:
            with contextlib.suppress(OSError):  # the folder has content, or is gone
                folder.rmdir()

    def _open(self):
        for left in range(_TRIES - 1, -1, -1):
            try:
                self._made = _make_folder(self._path.parent) or self._made
                self._file = _open(self._path)
                return
            except FileNotFoundError:  # the last holder has just removed the folder that it made
                if not left:
                    raise

    def _is_free(self) -> bool:
        """Whether this process may write its name; False if the file has been replaced meanwhile.

        Raises:
          UserError: another process holds the lock.
        """
        flocked = _flock(self._file)
        content = _read(self._path)
        if flocked is False:
            raise self._refusal(content)
        holder = parse(content)
        if holder is not None and holder.is_here():
            # For disks without a working flock. A copy of a locked folder names the same holder,
            # but has another inode.
            if holder.is_alive() and holder.file == _identity(self._file):
                raise self._refusal(content)
        elif content:
            self._wait_for_sign(content)
        return _is_at(self._file, self._path)

    def _wait_for_sign(self, content):
        """Return when a holder on another host has released the lock or counts as dead."""
        patience = self._times.patience
        print(
            f"{self._what}: waiting up to {patience:g} s for a sign of life from the process "
            f"that was writing there{describe_holder(content)}",
            flush=True,
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(self._times.look)
            now = _read(self._path)
            if not now:
                return
            if now != content:
                raise self._refusal(now)

    def _refusal(self, content):
        return UserError(
            f"{self._what}: another process is writing there{describe_holder(content)}; wait until "
            "it ends or end it, or choose another place"
        )

    def _keep(self):
        for pause in itertools.chain(_SOON, itertools.repeat(1.0)):
            if self._closed.wait(pause * self._times.beat) or self.lost:
                return
            self._renew()

    def _renew(self):
        """Renew the lock, unless another process has taken it."""
        with self._renewing, contextlib.suppress(OSError):  # the next renewal tries again
            if self._is_mine():
                self._write(dataclasses.replace(self._own, beat=self._own.beat + 1))

    def _is_mine(self):
        """Whether the file holds this process's token; False, too, if the file was removed."""
        content = _read(self._path)
        holder = parse(content)
        if holder is not None and holder.token != self._own.token:
            self._taker = holder
        elif not content:
            self._renewed = time.time()
        return bool(content) and not self.lost

    def _write(self, own):
        # In place, because the flock is on this file; closed, so that other hosts see the content.
        with open(self._path, "r+b", buffering=0) as file:
            file.write(own.to_bytes())
        self._own, self._renewed = own, time.time()


@contextlib.contextmanager
def _writable(path):
    """Turn the system's errors into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or permit it there, "
            "or choose another folder"
        ) from error


def _make_folder(folder) -> list[pathlib.Path]:
    """Make a folder and its parents; return the folders that were missing, the lowest first."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _open(path) -> BinaryIO:
    # O_NONBLOCK: opening a pipe would wait for its other end.
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{path} is no file, so nothing can be locked by it: remove it")
    return os.fdopen(number, "r+b", buffering=0)


def _flock(file) -> bool | None:
    """Whether the system grants the lock; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(path) -> bytes:
    """The lock's content, also when another host wrote it; empty if it is free or missing."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(SIZE).strip()
    except FileNotFoundError:
        return b""


def _identity(file) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _is_at(file, path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
