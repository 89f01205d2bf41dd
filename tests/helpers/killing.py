"""Runs in forks that are killed: after some time, or just before a call that touches a file."""

import os
import signal
import sys
import time

FILE_CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def in_fork(action, seconds=None) -> bool:
    """Whether the fork in which `action` ran was killed, by itself or after `seconds`."""
    pid = os.fork()
    if not pid:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # at worst a process that has ended, but is not waited for
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die_before(call, folder):
    """Kill this process before its call number `call` that touches a file below `folder`."""
    calls = 0

    def hook(event, arguments):
        nonlocal calls
        if event in FILE_CALLS and str(arguments[0]).startswith(str(folder)):
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
