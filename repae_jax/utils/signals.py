"""Signals that end a command: handled before slow imports begin, and never lost.

SIGINT, SIGTERM and SIGHUP raise `Interrupted` in the main thread, or, within `stop_event`, set an
event that a loop checks. An exception alone would get lost: Python swallows it in a callback of the
garbage collector (JAX has one), and a library may turn it into another error. So the signal is
recorded as well: a command that then ends with any error counts as interrupted, and a swallowed
exception is raised again. During an import the process ends at once, because C extensions crash or
print a traceback when an import of theirs fails. If the main thread does not answer, for example
because it compiles, another thread ends the process.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from repae_jax.errors import RUN_AGAIN

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
GRACE = 10.0  # seconds that the main thread has to end the command
# Seconds in which a second signal counts as the first: a terminal sends Ctrl-C to a script and to
# the programs that it runs.
_SAME_SIGNAL = 2.0
_MESSAGE = "interrupted; complete results are kept: run the same command again\n"


class Interrupted(KeyboardInterrupt):
    """A signal has asked the command to end."""


def take() -> bool:
    """Handle the signals from now on; return whether this call installed the handlers.

    Only the main thread can install them; in other threads nothing changes. An ignored SIGHUP
    (nohup) stays ignored.
    """
    return _taken.begin()


def take_again() -> None:
    """Install the handlers again after a library replaced them, as `jax.distributed.initialize`."""
    if _taken.thread is not None and threading.current_thread() is threading.main_thread():
        _taken.install()


def until_signal(command: Callable[[], int]) -> int:
    """The status that `command` returns, or the exit status of the signal that ended it.

    SIGINT gives 130; the other signals give 75, which says that the same command resumes.
    """
    new = take()
    if not new and _taken.armed:  # within another call, which handles the signals
        return command()
    status = None
    try:
        _taken.arm()
        status = command()
    except KeyboardInterrupt:
        _taken.number = _taken.number or signal.SIGINT  # another handler raised it
    except BaseException:
        if _taken.number is None:
            raise
    finally:
        _taken.armed = False
        number = _taken.number
        if new:
            _taken.end()
    if number is not None and status != 0:  # status 0: it was done before the signal took effect
        _write(_MESSAGE)
        status = _status(number)
    _taken.status = status
    return status


def check() -> None:
    """Raise `Interrupted` if a signal has come, for the case that its exception was swallowed."""
    if _taken.number is not None:
        raise Interrupted


def leave() -> None:
    """End the process at once if a signal has come: a thread that computes cannot be stopped."""
    if _taken.number is not None:
        _leave(_taken.number)


@contextlib.contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Yield an event that a signal sets; a later second signal ends the process at once.

    A signal that came before the block sets the event, too. Clouds and schedulers announce a
    preemption by SIGTERM; a second signal within 2 s counts as the first.
    """
    if _taken.event is not None:
        yield _taken.event
        return
    new = take()
    take_again()
    try:
        yield _taken.note()
    finally:
        _taken.event = None
        if new:
            _taken.end()


class _Taken:
    """The signal handlers of this process, and the signal that has come."""

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.armed = False  # whether a signal raises
        self.number: int | None = None  # the signal that is not answered yet
        self.event: threading.Event | None = None  # within `stop_event`
        self.status: int | None = None  # the exit status, once the command is done
        self._raised = self._swallowed = False
        self._first: float | None = None  # when the event was set
        self._previous: dict[int, object] = {}

    def begin(self) -> bool:
        if self.thread is not None or threading.current_thread() is not threading.main_thread():
            return False
        self.number = self.status = None
        self._raised = self._swallowed = False
        read, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        atexit.register(self._ignore)
        self.thread = threading.Thread(target=self._watch, args=(read,), daemon=True)
        self.thread.start()
        self._previous = {}
        self.install()
        return True

    def install(self) -> None:
        for number in ENDING:
            current = signal.getsignal(number)
            if current is signal.SIG_IGN and number != signal.SIGINT:
                continue
            signal.signal(number, self._handle)
            self._previous.setdefault(number, current)

    def end(self) -> None:
        for number, handler in self._previous.items():
            # None: the handler was set by C code
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        sys.unraisablehook = self._previous_hook
        atexit.unregister(self._ignore)
        os.write(self._write_end, b"\0")
        self.thread.join()
        os.close(self._write_end)
        self.thread = None

    def arm(self) -> None:
        self.armed = True
        if self.number is not None and not self._raised:
            self._raise()

    def note(self) -> threading.Event:
        waiting, self._first = self.number is not None, None
        self.number, self._raised, self._swallowed = None, False, False
        self.event = threading.Event()
        if waiting:
            self._hear()
        return self.event

    def _handle(self, number, frame):
        """The handler in the main thread; `_watch` sees the same signal in its own thread."""
        if self.event is not None:
            self._hear()
            return
        if self.number is None:
            self.number = number
        if self.armed and not self._raised:
            if _imports(frame):
                _leave(number)
            self._raise()

    def _raise(self):
        self._raised = True
        raise Interrupted

    def _ignore(self):
        """The last of the `atexit` functions: a signal must not end a process that is done."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def _unraisable(self, unraisable):
        if isinstance(unraisable.exc_value, Interrupted):
            self._swallowed = True
        else:
            self._previous_hook(unraisable)

    def _watch(self, read):
        with open(read, "rb", buffering=0) as signals:
            while number := signals.read(1)[0]:
                if number not in ENDING:
                    continue
                if self.event is not None:
                    self._note(number)
                elif self.armed:
                    self._see_to(number)
                elif self.status is not None:  # the command is done, but its process still runs
                    os._exit(self.status)

    def _note(self, number):
        self._hear()
        if time.monotonic() - self._first > _SAME_SIGNAL:
            _leave(number)

    def _hear(self):
        """Set the event; the main thread and `_watch` both call this."""
        if self._first is None:
            self._first = time.monotonic()
            self.event.set()

    def _see_to(self, number):
        """Wait until the main thread ends the command or enters `stop_event`; else exit."""
        deadline = time.monotonic() + GRACE
        while self.armed and self.event is None:
            if time.monotonic() > deadline:
                _leave(number)
            if self._swallowed:
                self._raised = self._swallowed = False
                signal.pthread_kill(threading.main_thread().ident, number)
            time.sleep(0.05)


def _imports(frame):
    """Whether a module is being imported; an exception there may crash a C extension."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number):
    _write(_MESSAGE)
    os._exit(_status(number))


def _status(number):
    return 128 + number if number == signal.SIGINT else RUN_AGAIN


def _write(text):
    """Write to descriptor 2: the main thread may hold sys.stderr, or the terminal be closed."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


_taken = _Taken()
