"""What cannot be printed ends no command, and is said in one line."""

import functools
import os
import pty
import signal
import subprocess
import sys

import pytest
from runs import start, wait_for, words

from repae_jax.runs.checkpoints import restore_latest

HELP, VERSION, NOTHING, INSPECT = ["--help"], ["--version"], [], ["inspect", "FILE"]


@pytest.fixture
def broken_pipe():
    """What is written to whose reader has ended."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def status_and_errors(arguments, teacher=None, **streams):
    process = start([str(teacher) if word == "FILE" else word for word in arguments], **streams)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("arguments", [HELP, VERSION, NOTHING, INSPECT])
def test_a_result_that_cannot_be_printed_is_an_error(arguments, teacher):
    with open("/dev/full", "w") as full:
        status, errors = status_and_errors(arguments, teacher, stdout=full)
    assert status == 2
    assert errors == "error: standard output could not be written (No space left on device)\n"


@pytest.mark.parametrize("arguments", [HELP, NOTHING, INSPECT])
def test_a_reader_that_has_ended_is_none(arguments, teacher, broken_pipe):
    assert status_and_errors(arguments, teacher, stdout=broken_pipe) == (0, "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_bad_input_keeps_its_status(stream, tmp_path, broken_pipe):
    assert status_and_errors(["inspect", tmp_path], **{stream: broken_pipe})[0] == 2


def test_streams_may_be_closed():
    for arguments, status in ((HELP, 0), (["inspect", "nothing"], 2)):
        assert start(arguments, shell='exec "$@" <&- >&- 2>&-').wait(60) == status


@pytest.mark.parametrize(("flags", "said"), [([], b""), (["-u"], b"x\n")])
def test_only_unbuffered_output_is_written_at_once(flags, said, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = "from repae_jax.utils import streams; import os; streams.take(); print('x'); os._exit(0)"
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, check=True)
    assert done.stdout == said


@pytest.mark.slow  # a process that compiles the step
def test_a_run_goes_on_without_its_display(teacher, tmp_path, broken_pipe):
    loud = words(tmp_path / "run", teacher)[:-1]
    with open("/dev/full", "w") as full:
        process = start(loud, stdout=broken_pipe, stderr=full)
        assert process.wait(240) == 0
    assert restore_latest(tmp_path / "run")["step"] == 4


@pytest.mark.slow  # a process that compiles the step
def test_a_terminal_that_closes_ends_the_run_saved(teacher, tmp_path):
    workdir, (terminal, child) = tmp_path / "run", pty.openpty()
    loud = words(workdir, teacher, steps=100_000, checkpoint_every=50_000)[:-1]

    # the first terminal that the leader of a session opens is its own
    shell = f'exec "$@" <{os.ttyname(child)} >&0 2>&0'
    process = start(loud, shell=shell, start_new_session=True)
    os.close(child)
    os.set_blocking(terminal, False)

    def has_logged():
        drain(terminal)
        return any(p.stat().st_size > 5000 for p in (workdir / "tensorboard").glob("*"))

    wait_for(has_logged, process)
    os.close(terminal)  # the system sends SIGHUP, and what is written meets an error
    assert process.wait(60) == 75
    assert restore_latest(workdir)["step"] > 0


def drain(terminal):
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # nothing more
        pass


def test_a_terminal_may_be_left_by_nohup(teacher):
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = start(["inspect", teacher], preexec_fn=ignore)  # nohup does so before it starts it
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
