"""Work for other processes that end with this one, however it ends."""

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

_in_worker: dict[str, Any] = {}  # a worker's function: sent once, and not with every item


@contextlib.contextmanager
def over_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Iterator[tuple[Any, Any]]]:
    """Calls `function` on every item in other processes, which are started afresh.

    Gives an iterator of (item, result) in the order of completion. When the context is left by
    an error, the workers end at once, in the middle of their items; so they do when this process
    is killed.

    Args:
      function: picklable; it is sent to each worker once.
      items: hashable, small.
      workers: how many processes.

    Raises:
      UserError: a worker was ended from outside. What `function` raises is raised here.
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
            "a worker process was ended from outside, perhaps for want of memory; run the same "
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
    for number in set(signals.ENDING) - {signal.SIGTERM}:  # by which the pool ends its workers
        signal.signal(number, signal.SIG_IGN)  # those of a terminal are the parent's to answer
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    _in_worker["function"] = function


def _end_with_parent(alive):
    """Ends this process when the pipe's other end closes, which a kill -9 does as well.

    Otherwise it would live on, for it holds both ends of the queue that it waits at.
    """
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _call(item):
    return _in_worker["function"](item)
