"""Two sides of one question in one run: turns, medians, spreads, a table and JSON."""

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class Side:
    """A call in a process of its own, so that no side inherits what another did to its process."""

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any):
        """Start the process, in which `make(*arguments)` gives the call; both must be picklable."""
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def __call__(self, *arguments: Any) -> Any:
        """What the call gives, there.

        Raises:
          EOFError: the process has ended, and said why.
        """
        self.begin(*arguments)
        return self.end()

    def begin(self, *arguments: Any) -> None:
        """Start the call and do not wait for it."""
        self._connection.send(arguments)

    def end(self) -> Any:
        """What the call gives that `begin` started; raises as a call does."""
        return self._connection.recv()

    def ready(self, seconds: float) -> bool:
        """Whether `end` need not wait, within that time."""
        return self._connection.poll(seconds)

    def pause(self, still: bool = True) -> None:
        """Let the process stand still, or go on: its GPU and processor are another side's."""
        os.kill(self._process.pid, signal.SIGSTOP if still else signal.SIGCONT)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End the process when it has done what it does."""
        self._connection.send(None)
        self._process.join()


def at_once(sides: Mapping[str, Side]) -> dict[str, Any]:
    """What a call of each gives, all at the same time: the first calls, which compile."""
    for side in sides.values():
        side.begin()
    return {name: side.end() for name, side in sides.items()}


@contextlib.contextmanager
def processes(
    names: Sequence[str], make: Callable[..., Callable[[], Any]], *arguments: Any
) -> Iterator[dict[str, Side]]:
    """A side of each name, of `make(name, *arguments)`, for as long as the context lasts."""
    sides = {name: Side(make, name, *arguments) for name in names}
    yield sides
    for side in sides.values():
        side.close()


def _serve(connection, make, arguments):
    call = make(*arguments)
    while (arguments := connection.recv()) is not None:
        connection.send(call(*arguments))


def alternate(
    sides: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 1, settle: int = 0
) -> dict[str, list[float]]:
    """Wall-clock seconds of each side's calls, taken in turns: `repeats` of each.

    A call must return when its work is done. The calls before the first counted one are the
    warm-up: what they compile is not counted. In every turn `settle` calls come before the counted
    one, which has back by then what the system took from an idle side, memory above all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + repeats):
        for name, call in sides.items():
            for _ in range(settle):
                call()
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if turn >= warm_up:
                seconds[name].append(taken)
            print(f"  {name}: {taken:.2f} s{'' if turn >= warm_up else ' (warm-up)'}", flush=True)
    return seconds


def report(
    title: str, seconds: Mapping[str, list[float]], images: int, **about: Any
) -> dict[str, float]:
    """Print a table and a line of JSON; returns each side's images/s.

    Args:
      title: what was measured.
      seconds: of each side's calls, the first side being the one that others are compared with.
      images: of one call.
      about: what else the JSON should tell.
    """
    rates = {name: images / statistics.median(taken) for name, taken in seconds.items()}
    base = next(iter(rates.values()))
    print(f"\n{title}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| side | images/s | seconds, median (least to most) | of the first |")
    print("| --- | --- | --- | --- |")
    for name, taken in seconds.items():
        spread = f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
        print(f"| {name} | {rates[name]:.3f} | {spread} | {rates[name] / base:.2f} x |")
    print(json.dumps({"title": title, "seconds": seconds, "images": images, **about}), flush=True)
    return rates
