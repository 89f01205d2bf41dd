"""Runs work in other processes, which end with this one, however it ends."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from repae_jax.errors import UserError
from repae_jax.utils import signals

_in_worker: dict[str, Any] = {}  # a worker's function, which it receives once for all items


@contextlib.contextmanager
def over_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Iterator[tuple[Any, Any]]]:
    """Call `function` on every item in spawned processes.

    Yields an iterator of (item, result) in the order of completion. If an error leaves the context,
    or this process is killed, the workers end at once, in the middle of their items.

    Args:
      function: a picklable function; each worker receives it once.
      items: small values.
      workers: the number of processes.

    Raises:
      UserError: a worker was ended from outside.
      Exception: an error that `function` raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    alive, hold = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(alive, function)
    )
    try:
        yield _results(pool, items)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was ended from outside, perhaps for lack of memory; run the same "
            "command again, with fewer workers"
        ) from error
    except BaseException:
        hold.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        hold.close()
        alive.close()


def _results(pool, items):
    submitted = {pool.submit(_call, item): item for item in items}
    for future in concurrent.futures.as_completed(submitted):
        yield submitted[future], future.result()


def _start(alive, function):
    for number in set(signals.ENDING) - {signal.SIGTERM}:  # the pool ends its workers by SIGTERM
        signal.signal(number, signal.SIG_IGN)  # the parent handles the signals of a terminal
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    _in_worker["function"] = function


def _end_with_parent(alive):
    """End this process when the pipe's other end closes, as it does after a kill -9 of the parent.

    Otherwise the process would live on: it holds both ends of the queue that it waits for.
    """
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _call(item):
    return _in_worker["function"](item)
