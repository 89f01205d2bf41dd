"""One writer at a time: locks on folders and files, across processes and hosts.

A lock is a small file with its holder in it (see `holder`). On a local disk and on NFS the
system's flock decides, and frees the lock when its process ends, however it ends. Where flock
does not reach other hosts (gcsfuse) or does not exist, the content decides: its holder renews it
every few seconds, and one that does not for a while is dead. A holder that was taken for dead, as
one that was suspended, finds another's token in the file and ends.
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
from repae_jax.utils.holder import SIZE, Holder, parse, this_process, told

NAME = ".lock"  # in a folder


@dataclasses.dataclass(frozen=True)
class Times:
    """In seconds.

    Attributes:
      beat: between two signs of life.
      patience: a holder on another host without one for so long is dead. gcsfuse shows other
        hosts what it had seen up to 60 s before.
      look: between two looks for one.
    """

    beat: float = 10.0
    patience: float = 90.0
    look: float = 1.0


TIMES = Times()
# The first looks at the own lock, in beats: two hosts that began at one moment have both written.
_SOON = (0.02, 0.05, 0.1, 0.2, 0.5)
_TRIES = 10  # to open a file in a folder that another process makes and removes


@contextlib.contextmanager
def writing_in(folder: pathlib.Path, times: Times | None = None) -> Iterator[Lock]:
    """Holds a folder, which is made if missing, against other processes.

    Folders that are empty again at the end are removed if this made them.

    Raises:
      UserError: another process holds it, or it cannot be written there.
    """
    with _held(folder / NAME, folder, times) as lock:
        yield lock


@contextlib.contextmanager
def writing(path: pathlib.Path, times: Times | None = None) -> Iterator[Lock]:
    """Holds what is to be at `path`, a file or a folder, by a lock beside it.

    Raises:
      UserError: another process holds it, or it cannot be written there.
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
        """Prepare to take it.

        Args:
          path: the lock's file.
          what: what it holds, for messages.
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
        """Whether another process has taken it, as far as this one has looked."""
        return self._taker is not None

    def take(self) -> None:
        """Hold it.

        Raises:
          UserError: another process does, or the file cannot be written.
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
        """See that it is still this process's; costs nothing while the renewals come through.

        Raises:
          UserError: another process has taken it.
        """
        if time.time() - self._renewed > self._times.patience / 2:  # this one may have been asleep
            self._renew()
        if self.lost:
            raise UserError(
                f"{self._what}: another process has taken over writing there ({self._taker}), "
                f"since it saw no sign of this one for {self._times.patience:g} s; this one ends"
            )

    def close(self) -> None:
        """Free it, and remove its file; another's is left alone."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(self._times.beat)
        with contextlib.suppress(OSError):
            if self._own is not None and self._is_mine():
                self._path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty, or gone
                folder.rmdir()

    def _open(self):
        for left in range(_TRIES - 1, -1, -1):
            try:
                self._made = _make_folder(self._path.parent) or self._made
                self._file = _open(self._path)
                return
            except FileNotFoundError:  # its holder has just removed the folder that it had made
                if not left:
                    raise

    def _is_free(self) -> bool:
        """Whether this process may write its name; False if the file is another one by now.

        Raises:
          UserError: another process holds it.
        """
        flocked = _flock(self._file)
        content = _read(self._path)
        if flocked is False:
            raise self._refusal(content)
        holder = parse(content)
        if holder is not None and holder.is_here():
            # On a disk whose flock holds nobody back; a copy of a folder in use names it as well.
            if holder.is_alive() and holder.file == _identity(self._file):
                raise self._refusal(content)
        elif content:
            self._wait_for_sign(content)
        return _is_at(self._file, self._path)

    def _wait_for_sign(self, content):
        """Returns when the holder elsewhere has freed the lock, or is dead."""
        patience = self._times.patience
        print(
            f"{self._what}: waiting up to {patience:g} s to see whether another process is alive "
            f"that was writing there{told(content)}",
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
            f"{self._what}: another process is writing there{told(content)}; wait until it ends "
            "or end it, or choose another place"
        )

    def _keep(self):
        for pause in itertools.chain(_SOON, itertools.repeat(1.0)):
            if self._closed.wait(pause * self._times.beat) or self.lost:
                return
            self._renew()

    def _renew(self):
        """Give a sign of life, unless another process has taken the lock."""
        with self._renewing, contextlib.suppress(OSError):  # a disk's hiccup: the next one will do
            if self._is_mine():
                self._write(dataclasses.replace(self._own, beat=self._own.beat + 1))

    def _is_mine(self):
        """Whether no other's token is in the file; it is not there if someone has removed it."""
        content = _read(self._path)
        holder = parse(content)
        if holder is not None and holder.token != self._own.token:
            self._taker = holder
        elif not content:
            self._renewed = time.time()
        return bool(content) and not self.lost

    def _write(self, own):
        # In place, for the flock is on this file; and closed, by which other hosts see it.
        with open(self._path, "r+b", buffering=0) as file:
            file.write(own.to_bytes())
        self._own, self._renewed = own, time.time()


@contextlib.contextmanager
def _writable(path):
    """The system's errors as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or permit it there, "
            "or choose another folder"
        ) from error


def _make_folder(folder) -> list[pathlib.Path]:
    """Make a folder; returns it and those above that were made for it, the lowest first."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _open(path) -> BinaryIO:
    # Not to wait for the other end of a pipe.
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{path} is no file, so nothing can be locked by it: remove it")
    return os.fdopen(number, "r+b", buffering=0)


def _flock(file) -> bool | None:
    """Whether the system gives the lock: None where it has none to give."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _read(path) -> bytes:
    """A lock's content, as other hosts have written it; empty if it is free or not there."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(SIZE).strip()
    except FileNotFoundError:
        return b""


def _identity(file) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _is_at(file, path) -> bool:
    """Whether an open file is still that of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
