"""Signals that end a run in order."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

_SAME_WISH = 2.0  # seconds


@contextlib.contextmanager
def catch_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; another one later has its usual effect.

    Clouds and schedulers announce a preemption by SIGTERM. One that comes right behind the first
    is the same wish once more: a terminal sends Ctrl-C to a script and to what it runs.
    """
    requested = threading.Event()
    previous = {}
    first = 0.0

    def handle(number, frame):
        nonlocal first
        if not requested.is_set():
            first = time.monotonic()
            requested.set()
        elif time.monotonic() - first > _SAME_WISH:
            restore()
            signal.raise_signal(number)

    def restore():
        for number, handler in previous.items():
            # None: set by code that is not Python's, such as jax.distributed's
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield requested
    finally:
        restore()
