"""Signals: whenever one comes, a command ends within seconds, with its status, in one line."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from runs import start, words

TRIES = 60 if os.environ.get("REPAE_THOROUGH") else 5
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75}


def takes_signals(process):
    """Whether a process has a handler of its own for SIGTERM, which Python has none for."""
    try:
        with open(f"/proc/{process.pid}/status") as file:
            caught = next(line for line in file if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1)


def send(process, number, after):
    """Sends a signal so many seconds after it is taken; (status, stderr, seconds that it took)."""
    deadline = time.monotonic() + 10
    while not takes_signals(process) and process.poll() is None:
        assert time.monotonic() < deadline, "signals are not taken"
        time.sleep(0.001)
    time.sleep(after)
    assert process.poll() is None, f"ended before: {process.communicate()[1]}"
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, time.monotonic() - sent


@pytest.mark.parametrize("command", ["inspect", "sample", "train"])
def test_a_signal_at_any_moment_of_start_up(command, tmp_path):
    rng = random.Random(command)
    weights = tmp_path / "teacher.safetensors"
    weights.touch()
    arguments = {
        "inspect": ["inspect", tmp_path],
        "sample": ["sample", "--workdir", tmp_path],
        "train": words(tmp_path / "run", weights),  # which ends where it reads them
    }[command]
    for _ in range(TRIES):
        number = rng.choice(list(STATUS))
        status, errors, seconds = send(start(arguments), number, rng.uniform(0, 0.5))
        assert status == STATUS[number], errors
        assert errors.startswith("interrupted")
        assert errors.count("\n") == 1, errors
        assert seconds < 10
    assert list(tmp_path.iterdir()) == [weights]


@pytest.mark.slow  # processes that each train
@pytest.mark.skipif("not os.environ.get('REPAE_THOROUGH')", reason="several minutes")
def test_a_signal_at_any_moment_of_a_run(teacher, tmp_path):
    rng, seen = random.Random(0), collections.Counter()
    for attempt in range(TRIES):
        workdir, number = tmp_path / f"run{attempt}", rng.choice(list(STATUS))
        run = start(words(workdir, teacher, steps=100_000, checkpoint_every=100))
        status, errors, seconds = send(run, number, rng.uniform(0, 20))
        assert "Traceback" not in errors, errors
        assert "Exception" not in errors, errors
        assert status in (STATUS[number], 75), errors
        assert seconds < 20
        seen[status, (workdir / "checkpoints").exists()] += 1
        if (workdir / "config.json").exists():
            json.loads((workdir / "config.json").read_text())
        assert not list(tmp_path.rglob("*tmp*"))
    print(seen)


def alone(code, number, after=0.3):
    """`send` to a process that runs `command()` of this code until a signal."""
    code = f"import sys\nfrom repae_jax.utils import signals\n{code}\nsignals.take()\n"
    code += "sys.exit(signals.until_signal(command))"
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **options) as process:
        return send(process, number, after)


IN_A_CALLBACK = """
import gc, time
def command():
    gc.callbacks.append(lambda *_: time.sleep(0.5))  # where an exception is swallowed
    gc.collect()
    time.sleep(60)
"""
MADE_ANOTHER = """
import time
def command():
    try:
        time.sleep(60)
    except BaseException:
        raise ImportError("numpy.core failed to import")
"""
IN_C = """
import hashlib
signals.GRACE = 0.5
def command():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # which looks at no signal
"""
DROPPED = """
import contextlib, time
signals.GRACE = 0.5
def command():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)
"""
NOTED = """
import time
def command():
    with signals.stop_event() as event:
        event.wait()
        print("saved", file=sys.stderr, flush=True)
        return 75
"""


@pytest.mark.parametrize("code", [IN_A_CALLBACK, MADE_ANOTHER, IN_C, DROPPED])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_not_lost(code, number):
    status, errors, seconds = alone(code, number)
    assert status == STATUS[number]
    assert errors == "interrupted; complete results are kept: run the same command again\n"
    assert seconds < 5


def test_a_command_may_note_a_signal():
    assert alone(NOTED, signal.SIGHUP)[:2] == (75, "saved\n")


def test_a_second_signal_ends_what_noted_the_first():
    code = NOTED.replace("event.wait()", "time.sleep(60)")
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code = f"import sys\nfrom repae_jax.utils import signals\n{code}\nsignals.until_signal(command)"
    with subprocess.Popen([sys.executable, "-c", code], **options) as process:
        while not takes_signals(process):
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_what_was_there_before_is_there_behind_it():
    from repae_jax.utils import signals

    before = [signal.getsignal(number) for number in signals.ENDING]
    assert signals.until_signal(lambda: 7) == 7
    assert [signal.getsignal(number) for number in signals.ENDING] == before
