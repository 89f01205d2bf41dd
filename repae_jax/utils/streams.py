"""Standard output and error whose failure does not end a command.

When a reader ends (`| head`), a terminal closes, or the disk behind `> log` is full, the output is
lost and the command continues. All output, progress bars included, goes through `sys.stdout` and
`sys.stderr`, so it is enough to replace these two.
"""

import contextlib
import errno
import io
import os
import select
import sys


def take() -> None:
    """Replace the process's own two streams; a stream that other code has replaced is kept."""
    _open_closed()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
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


def report_lost_output(status: int, needed: bool) -> int:
    """Report in one line that standard output could not be written; return the exit status.

    A reader that has ended (`| head`) is no fault.

    Args:
      status: the command's own exit status.
      needed: whether the output is the command's result; a failure then gives status 2.
    """
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.flush()
    if 1 not in _Enduring.lost:
        return status
    word = "error" if needed else "warning"
    print(f"{word}: standard output could not be written ({_Enduring.lost[1]})", file=sys.stderr)
    return status or (2 if needed else 0)


class _Enduring(io.FileIO):
    """A file descriptor whose writes never raise."""

    lost: dict[int, str] = {}  # noqa: RUF012  (descriptor -> why its output is lost)

    def __init__(self, number: int):
        super().__init__(number, "w", closefd=False)

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:  # full, and non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost[self.fileno()] = error.strerror
            return size


def _open_closed():
    """Open descriptors 0, 1 and 2 where they are closed, so that no other file takes them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
