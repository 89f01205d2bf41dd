"""One writer at a time: on this host, on others, and with file systems that have no locks."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from repae_jax.errors import UserError
from repae_jax.utils import holder, lock
from repae_jax.utils.lock import Times, writing, writing_in

QUICK = Times(beat=0.05, patience=0.6, look=0.02)
REFUSED = "another process is writing there"
HOLDS = """
import sys
from pathlib import Path
from repae_jax.utils.lock import writing_in
with writing_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holding(tmp_path):
    """A process of its own that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path / "run"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(params=["flock", "no flock"])
def file_system(request, monkeypatch):
    """With and without locks of the system's."""
    if request.param == "no flock":

        def refuse(*arguments):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_lock_that_is_no_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / ".lock"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    script = "import sys; from pathlib import Path; from repae_jax.utils.lock import writing_in\n"
    script += "with writing_in(Path(sys.argv[1])): pass"
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60
    )
    message = "Is a directory" if kind == "folder" else f"{path} is no file, so nothing can be"
    assert message in ended.stderr.splitlines()[-1]
    assert "UserError" in ended.stderr


def test_another_process_is_named_and_waited_for(holding, tmp_path, file_system):
    with pytest.raises(UserError, match=f"run: {REFUSED}") as refusal, writing_in(tmp_path / "run"):
        pass
    assert f"(process {holding.pid} on {os.uname().nodename}, `-c " in str(refusal.value)
    holding.stdin.write("\n")
    holding.stdin.flush()
    assert holding.wait(10) == 0
    assert not (tmp_path / "run").exists()  # it had made it, and wrote nothing
    with writing_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("buried", [True, False])
def test_a_dead_process_does_not_block(buried, holding, tmp_path, file_system):
    holding.kill()
    if buried:
        holding.wait()
    else:  # a zombie: its parent has not asked for its end
        os.waitid(os.P_PID, holding.pid, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / "run" / ".lock").stat().st_size
    started = time.monotonic()
    with writing_in(tmp_path / "run"):
        assert time.monotonic() - started < 1
    assert not list((tmp_path / "run").iterdir())


def test_whatever_is_written_about_a_process_is_said_in_one_line():
    fields = dataclasses.asdict(holder.this_process("token", (1, 2)))
    there = holder.Holder(**{**fields, "command": "a\nb\x1b[2J", "host": "node\n7"})
    told = holder.describe_holder(there.to_bytes())
    assert told == f" (process {os.getpid()} on node 7, `a b [2J`)"
    for wrong in ({"pid": 10**30}, {"pid": -1}, {"pid": True}, {"token": None}, {"file": 3}):
        assert holder.parse(holder.json.dumps(fields | wrong).encode()) is None


def test_a_number_that_another_process_has_by_now_does_not_block(tmp_path, file_system):
    with writing_in(tmp_path):
        content = (tmp_path / ".lock").read_bytes()
    mine = holder.parse(content)
    dead = dataclasses.replace(mine, started=mine.started - 1)
    (tmp_path / ".lock").write_bytes(dead.to_bytes())
    with writing_in(tmp_path):
        pass


def test_of_many_that_begin_at_once_one_goes_on(tmp_path):
    entered, refused = [], []
    start, end = threading.Barrier(8), threading.Barrier(8)

    def run():
        start.wait()
        try:
            with writing_in(tmp_path / "new" / "run"):
                entered.append(1)
                end.wait()
        except UserError as error:
            refused.append(str(error))
            end.wait()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1
    assert all(REFUSED in error for error in refused)


def test_a_folder_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    """The process that had made the folder ends before another has the lock in it."""
    flock, folder = lock._flock, tmp_path / "new" / "run"

    def late(file):
        if folder.exists() and not late.done:
            late.done = True
            shutil.rmtree(tmp_path / "new")
        return flock(file)

    late.done = False
    monkeypatch.setattr(lock, "_flock", late)
    with writing_in(folder):
        assert holder.parse((folder / ".lock").read_bytes()).pid == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    """Between the opening of the file and the lock on it, its holder ends."""
    opened = lock._open

    def late(path):
        file = opened(path)
        if not late.done:
            late.done = True
            path.unlink()
        return file

    late.done = False
    monkeypatch.setattr(lock, "_open", late)
    with writing_in(tmp_path):
        assert holder.parse((tmp_path / ".lock").read_bytes()).pid == os.getpid()
        with pytest.raises(UserError, match=REFUSED), writing_in(tmp_path):
            pass


# --- other hosts ---


@pytest.fixture
def elsewhere(tmp_path):
    """Writes the lock of a process on another host, with the next sign of life at each call."""
    with writing_in(tmp_path):
        mine = holder.parse((tmp_path / ".lock").read_bytes())
    there = dataclasses.replace(mine, host="node7", pid=4321, place="node7", token="other")

    def beat(number):
        (tmp_path / ".lock").write_bytes(dataclasses.replace(there, beat=number).to_bytes())

    beat(0)
    return beat


def test_a_process_elsewhere_that_gives_signs_of_life_is_waited_for(
    elsewhere, tmp_path, capsys, file_system
):
    threading.Timer(0.2, elsewhere, [1]).start()
    with pytest.raises(UserError, match=REFUSED) as refusal, writing_in(tmp_path, QUICK):
        pass
    assert "(process 4321 on node7, `" in str(refusal.value)
    said = capsys.readouterr().out
    assert "waiting up to 0.6 s for a sign of life from the process that" in said
    assert "process 4321 on node7" in said
    assert (tmp_path / ".lock").exists()


def test_one_elsewhere_that_gives_none_is_dead(elsewhere, tmp_path, file_system):
    started = time.monotonic()
    with writing_in(tmp_path, QUICK) as held:
        assert 0.6 <= time.monotonic() - started < 3
        time.sleep(0.2)
        held.check()
    assert not (tmp_path / ".lock").exists()


def test_one_elsewhere_that_ends_meanwhile_is_no_obstacle(elsewhere, tmp_path):
    threading.Timer(0.1, (tmp_path / ".lock").unlink).start()
    started = time.monotonic()
    with writing_in(tmp_path, QUICK):
        assert time.monotonic() - started < 0.5
        assert holder.parse((tmp_path / ".lock").read_bytes()).pid == os.getpid()


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"[" * 2000, b'{"pid": 1}', b"another program's\n"]
)  # the first is what a power failure may leave
def test_whatever_else_is_in_the_file_is_watched_and_then_replaced(content, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    with writing_in(tmp_path, QUICK):
        assert holder.parse((tmp_path / ".lock").read_bytes()).pid == os.getpid()


def test_two_hosts_that_begin_at_once_without_locks_end_as_one(tmp_path, monkeypatch):
    """Both see that nobody is there, and write; then one of them goes on."""
    monkeypatch.setattr(lock, "_flock", lambda file: None)
    monkeypatch.setattr(holder, "place", lambda: threading.current_thread().name)
    write, both, results = lock.Lock._write, threading.Barrier(2), {}

    def together(self, own):
        if not own.beat:
            both.wait(5)
        write(self, own)

    monkeypatch.setattr(lock.Lock, "_write", together)

    def run():
        name = threading.current_thread().name
        try:
            with writing_in(tmp_path, QUICK) as held:
                for _ in range(30):
                    time.sleep(0.02)
                    held.check()
                results[name] = "done"
        except UserError as error:
            results[name] = str(error)

    threads = [threading.Thread(target=run, name=name) for name in ("node1", "node2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lost,) = [said for said in results.values() if said != "done"]
    assert "another process has taken over writing there (process" in lost
    assert not (tmp_path / ".lock").exists()


def test_a_process_that_slept_while_another_took_over_ends_and_leaves_its_lock(
    elsewhere, tmp_path, monkeypatch
):
    (tmp_path / ".lock").unlink()
    monkeypatch.setattr(lock, "_SOON", (1e6,))  # it does not look by itself
    with writing_in(tmp_path, QUICK) as held:
        elsewhere(1)
        held.check()  # it has just looked: reading files at every step would be dear
        time.sleep(0.4)
        with pytest.raises(UserError, match=r"taken over writing there \(process 4321 on node7"):
            held.check()
    assert holder.parse((tmp_path / ".lock").read_bytes()).pid == 4321


# --- files and folders ---


def test_a_copy_of_a_folder_in_use_is_not_in_use(tmp_path):
    with writing_in(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with writing_in(tmp_path / "copy"):
            pass


def test_a_folder_in_use_may_be_moved_when_it_is_free(holding, tmp_path):
    holding.kill()
    holding.wait()
    (tmp_path / "run").rename(tmp_path / "moved")
    with writing_in(tmp_path / "moved"):
        pass


def test_what_is_to_come_into_being_is_locked_beside_it(tmp_path):
    target = tmp_path / "models" / "vae"
    with writing(target):
        assert not target.exists()
        with pytest.raises(UserError, match=f"{target}: {REFUSED}"), writing(target):
            pass
        with writing(target.with_name("other")):
            pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="name a file or a folder"), writing(tmp_path.anchor):
        pass


def test_where_nothing_can_be_written_it_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), writing_in(tmp_path / "file"):
        pass


def test_a_lock_removed_by_hand_goes_to_who_comes_next(tmp_path):
    with writing_in(tmp_path, QUICK) as first:
        (tmp_path / ".lock").unlink()
        time.sleep(0.4)
        first.check()
        with writing_in(tmp_path, QUICK) as second:
            time.sleep(0.4)
            second.check()
            with pytest.raises(UserError, match="has taken over"):
                first.check()
