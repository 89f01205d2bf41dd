"""Standard output and error that a command outlives.

A reader that ends (`| head`), a terminal that closes, a full disk behind `> log`: what cannot be
written is lost, and the command continues. Everything that prints goes through `sys.stdout` and
`sys.stderr`, progress bars, too, so it is enough to replace these two.
"""

import contextlib
import errno
import io
import os
import select
import sys


def take() -> None:
    """Replace the process's own two streams; what others have replaced already stays theirs."""
    _open_closed()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            kind = dict(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        elif stream is getattr(sys, f"__{name}__"):
            kind = dict(encoding=stream.encoding, errors=stream.errors)
            kind |= dict(line_buffering=stream.line_buffering, write_through=stream.write_through)
        else:
            continue
        file = _Enduring(number)
        unbuffered = kind.get("write_through")  # python -u
        ours = io.TextIOWrapper(file if unbuffered else io.BufferedWriter(file), **kind)
        setattr(sys, name, ours)
        setattr(sys, f"__{name}__", ours)


def checked(status: int, needed: bool) -> int:
    """Say in one line if standard output could not be written; returns the exit status.

    A reader that has ended wanted no more: that is no fault.

    Args:
      status: of the command.
      needed: whether what it prints is its result: the status is 2 then.
    """
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.flush()
    if 1 not in _Enduring.lost:
        return status
    word = "error" if needed else "warning"
    print(f"{word}: standard output could not be written ({_Enduring.lost[1]})", file=sys.stderr)
    return status or (2 if needed else 0)


class _Enduring(io.FileIO):
    """A file descriptor to write to, without errors."""

    lost: dict[int, str] = {}  # noqa: RUF012  (why what was written to a descriptor is lost)

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # full, and set to not wait
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost[self.fileno()] = error.strerror
            return size


def _open_closed():
    """Open what is closed of the first three descriptors, which another file would become else."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
