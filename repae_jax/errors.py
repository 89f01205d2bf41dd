"""Exceptions and warnings that are said in one line, and exit statuses."""

import contextlib
import sys
from collections.abc import Iterator

# The exit status of what was ended before it was done: run the same command to go on
# (EX_TEMPFAIL of sysexits.h).
RUN_AGAIN = 75


def first_line(error: Exception) -> str:
    """The beginning of another library's message, or the error's name if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def warn(text: str) -> None:
    """Say in one line what does not stop anything, but should be known."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def out_of_memory(error: Exception) -> bool:
    """Whether XLA says that a program does not fit the device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


class UserError(ValueError):
    """Bad input: the message names the culprit, its value, and the way out, in one line.

    The command line prints it without a traceback and exits with status 2.
    """


class Diverged(UserError):
    """A run whose losses stay not finite."""


class TryAgain(UserError):
    """A fault that may be gone when the same command runs again; its exit status is 75."""


class LostProcess(TryAgain):
    """Another process of the same job is gone, and with it what both were doing."""


@contextlib.contextmanager
def batch_size_advised() -> Iterator[None]:
    """A batch that does not fit the memory is a UserError that names --batch-size."""
    try:
        yield
    except RuntimeError as error:  # JAX's errors are; without its import
        if not out_of_memory(error):
            raise
        raise UserError(
            f"a batch does not fit the memory ({first_line(error)}): lower --batch-size"
        ) from error
