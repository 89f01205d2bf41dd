"""Work in a thread beside the caller's, such as a slow import while a program compiles."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def start(function: Callable[..., Any], *args: Any, **options: Any) -> Future:
    """Call a function in a thread of its own; the future gives its result or raises its error."""
    thread = ThreadPoolExecutor(1)
    future = thread.submit(function, *args, **options)
    thread.shutdown(wait=False)
    return future
