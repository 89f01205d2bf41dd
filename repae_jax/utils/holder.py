"""The holder of a lock: the content of the lock's file, and whether its process is alive."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import socket
import sys

SIZE = 2048  # bytes of the content: constant, so that one write replaces all of it
_SHOWN = 200  # characters of a command in messages


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
      token: identifies this holding of the lock.
      host: the machine's name.
      pid: the process's number on that host.
      started: the process's start time in the system's ticks; None if the system has none.
      place: where the process number is valid, see `place`.
      file: (device, inode) of the lock's file; a copy of the folder has other numbers.
      command: the process's command line.
      beat: a counter that rises as long as the process is alive.
    """

    token: str
    host: str
    pid: int
    started: int | None
    place: str
    file: tuple[int, int]
    command: str
    beat: int = 0

    def __str__(self) -> str:
        text = f"process {self.pid} on {self.host}, `{self.command}`"
        return "".join(letter if letter.isprintable() else " " for letter in text)

    def is_here(self) -> bool:
        """Whether the process runs at this `place`, so that `is_alive` can answer."""
        return self.place == place()

    def is_alive(self) -> bool:
        """Whether the process runs on this machine now."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process
            pass
        return self.started is None or self.started == _started(self.pid)

    def to_bytes(self) -> bytes:
        """The content of a lock's file: JSON, padded to `SIZE` bytes."""
        return json.dumps(dataclasses.asdict(self)).encode().ljust(SIZE)


def this_process(token: str, file: tuple[int, int]) -> Holder:
    """This process as a holder."""
    program = pathlib.PurePath(sys.argv[0])
    if program.name == "__main__.py":  # python -m
        program = program.parent
    command = " ".join([program.name, *sys.argv[1:]])
    if len(command) > _SHOWN:
        command = f"{command[:_SHOWN]} ..."
    pid = os.getpid()
    return Holder(token, socket.gethostname(), pid, _started(pid), place(), file, command)


def parse(content: bytes) -> Holder | None:
    """The inverse of `Holder.to_bytes`; None for anything else."""
    try:
        fields = json.loads(content)
        holder = Holder(**{**fields, "file": tuple(fields["file"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = isinstance(holder.token, str) and type(holder.pid) is int
    return holder if known and 0 < holder.pid < 2**31 else None


def describe_holder(content: bytes) -> str:
    """The text " (HOLDER)" for the content of a lock's file; "" if it names no holder."""
    holder = parse(content)
    return f" ({holder})" if holder is not None else ""


@functools.cache
def place() -> str:
    """Where a process number identifies one process: a host, its boot, and its PID namespace."""
    host = socket.gethostname()
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return host


def _started(pid: int) -> int | None:
    """The start time of a running process in ticks; None if it does not run, or is unknown.

    The system reuses process numbers, but never a number with its start time.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])
