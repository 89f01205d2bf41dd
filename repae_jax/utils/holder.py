"""Who holds a lock: the content of its file, and whether that process is alive."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import socket
import sys

SIZE = 2048  # bytes of the content, always, so that it is written in one piece and never cut
_SHOWN = 200  # characters of a command


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
      token: of this holding and no other.
      host: the machine's name.
      pid: the process's number there.
      started: when it started, in the system's ticks; None where the system does not tell.
      place: where process numbers count, see `place`.
      file: (device, inode) of the lock's file; a copy of the folder has others.
      command: what it was called with.
      beat: rises as long as the process is alive.
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
        """Whether this machine can tell if it is alive."""
        return self.place == place()

    def is_alive(self) -> bool:
        """Whether it is a process of this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            pass
        return self.started is None or self.started == _started(self.pid)

    def to_bytes(self) -> bytes:
        """The content of a lock's file."""
        return json.dumps(dataclasses.asdict(self)).encode().ljust(SIZE)


def this_process(token: str, file: tuple[int, int]) -> Holder:
    """The holder that this process is."""
    program = pathlib.PurePath(sys.argv[0])
    if program.name == "__main__.py":  # of python -m
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


def told(content: bytes) -> str:
    """Who it says that it is, for the end of a clause; "" if it does not."""
    holder = parse(content)
    return f" ({holder})" if holder is not None else ""


@functools.cache
def place() -> str:
    """Where a process's number means that process: one start of one machine, one container."""
    host = socket.gethostname()
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return host


def _started(pid: int) -> int | None:
    """The start of a process that runs; numbers are given again, these pairs are not."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else int(fields[19])
