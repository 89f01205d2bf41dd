"""Signals that end a run in order."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def catch_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second signal has its usual effect.

    Clouds and schedulers announce a preemption by SIGTERM.
    """
    requested = threading.Event()
    previous = {}

    def handle(number, frame):
        requested.set()
        restore()

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
