"""Cases, one after the other, in a process that is replaced when it hangs or dies."""

import collections
import dataclasses
import json
import multiprocessing
import pathlib
import random
import time
from collections.abc import Iterator

from fuzz import mutations
from fuzz.targets import by_name
from fuzz.worker import serve

_ONCE_BROKEN = pathlib.Path(__file__).with_name("once_broken.jsonl")
COMMAND_MEMORY = 3 * 2**30  # of a command: 2 GB, and what Python, JAX and torch take

SECONDS = 60  # that a case may take
_START = 300  # that a process may take to start and to make a target's files
_HANGS = 3  # after which a target is given up
GOOD = ("same", "refused", "other")
OUTCOMES = (*GOOD, "exception", "silent", "hang", "memory", "message", "died")


@dataclasses.dataclass
class Tally:
    """What became of one target's cases.

    Attributes:
      counts: by outcome.
      faults: (outcome, case, what happened) of those that are none of `GOOD`.
      slowest: (seconds, case).
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: list = dataclasses.field(default_factory=list)
    slowest: tuple = (0.0, None)


class Worker:
    """A process of `worker.serve`, started when it is first needed."""

    def __init__(self, root: pathlib.Path):
        self.root, self._process, self._connection = root, None, None
        self._log = root / "stderr.txt"
        self._files: dict[str, list[str]] = {}  # by target

    def seed(self, target: str) -> pathlib.Path:
        """The folder of its unchanged files."""
        self.files(target)
        return self.root / "seeds" / by_name(target).folder

    def files(self, target: str) -> list[str]:
        """The files that can be changed; makes the target's if it must."""
        self._ask(target, None)
        return self._files[target]

    def run(self, target: str, case: mutations.Case) -> tuple:
        """(outcome, what of it, seconds)."""
        started = time.monotonic()
        try:
            answer = self._ask(target, case)
        except TimeoutError:
            self._stop()
            return "hang", self._last_words("most recent call first"), SECONDS
        except (EOFError, ConnectionError):
            code = self._process.exitcode
            self._stop()
            return "died", f"{code}: {self._last_words('Fatal')}", time.monotonic() - started
        if answer[0] == "broken":
            raise RuntimeError(f"{target} {json.dumps(case)}: {answer[1]}")
        if answer[0] == "memory" or any(sign in answer[1] for sign in ("Recursion", "Memory")):
            self._stop()  # libraries that ran out of either may not be themselves any more
        return answer

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._stop()

    def _ask(self, target, case):
        if self._process is None:
            self._start()
        self._connection.send((target, case))
        if target not in self._ready:
            word, told = self._receive(_START)
            if word != "ready":
                raise RuntimeError(f"{target}: {told}")
            self._files[target] = told
            self._ready.add(target)
        if case is None:
            return None
        return self._receive(SECONDS)

    def _receive(self, seconds):
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def _start(self):
        self.root.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")  # forks of a process with JAX may hang
        self._connection, theirs = context.Pipe()
        arguments = (theirs, str(self.root), str(self._log))
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._ready = set()

    def _stop(self):
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = None

    def _last_words(self, sign):
        """Where the process was when it ended, as far as the package's own frames say."""
        text = self._log.read_text(errors="replace")[-20_000:]
        lines = text.rpartition(sign)[2].splitlines()
        own = [line.strip() for line in lines if "/repae_jax/" in line]
        return own[0].rpartition("/repae_jax/")[2] if own else " ".join(lines[-3:])[-200:]


def cases(worker: Worker, target: str, seed: int) -> Iterator[mutations.Case]:
    """For ever: the target's files in turn, of each its edits in random order among its bytes'."""
    files = worker.files(target)
    folder = worker.seed(target)
    streams = [
        mutations.changes(folder / file, file, random.Random(f"{seed} {target} {file}"))
        for file in files
    ]
    while True:
        for stream in streams:
            yield next(stream)


def fuzz(
    worker: Worker, target: str, seconds: float, seed: int | str = 0, *, least: int = 1
) -> Tally:
    """Cases of one target until the seconds have passed, but `least`; what once failed is first."""
    tally = Tally()
    stream = _in_turn(once_broken(target), cases(worker, target, seed))
    worker.files(target)
    deadline = time.monotonic() + seconds  # without the making of the files
    while tally.counts.total() < least or time.monotonic() < deadline:
        case = next(stream)
        outcome, what, *took = worker.run(target, case)
        if outcome == "impossible":
            continue
        tally.counts[outcome] += 1
        if outcome not in GOOD:
            tally.faults.append((outcome, case, what))
        if outcome == "hang":  # which leaves the others no time
            deadline += SECONDS
            if tally.counts["hang"] == _HANGS:
                return tally
        if took and took[0] > tally.slowest[0]:
            tally.slowest = (took[0], case)
    return tally


def _in_turn(known, new):
    for case in known:
        yield case
        yield next(new)
    yield from new


def once_broken(target: str) -> list[mutations.Case]:
    """Cases that did not end well before the fault behind them was found."""
    lines = _ONCE_BROKEN.read_text().splitlines() if _ONCE_BROKEN.exists() else []
    return [case for name, *case in map(json.loads, lines) if name == target]


def command(target: str, case: mutations.Case) -> str:
    """What repeats one case."""
    return f"PYTHONPATH=tests:tests/helpers python -m fuzz {target!r} '{json.dumps(case)}'"
