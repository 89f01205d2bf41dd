"""Every command that writes holds what it writes; those that only read are never held up."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import pytest
import tiny
from pictures import write_pictures
from runs import TINY, wait_for, words
from test_run_data import STEPS, save

from repae_jax.cli import main
from repae_jax.config.overrides import read_config
from repae_jax.errors import UserError
from repae_jax.runs.checkpoints import saved_steps
from repae_jax.study.plan import Job
from repae_jax.study.run import run_job
from repae_jax.training.program import Program
from repae_jax.utils import holder, lock
from repae_jax.utils.lock import Times, writing, writing_in

STUDY = str(pathlib.Path(TINY).with_name("tiny_study.py"))
REFUSED = "another process is writing there"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The work directory of a VAE's run that has done its steps, and a folder of pictures."""
    root = tmp_path_factory.mktemp("done")
    save(tiny.get_config("vae"), root / "run")
    write_pictures(root / "pictures", {f"c/{number}.png": (32, 32, "RGB") for number in range(2)})
    return types.SimpleNamespace(workdir=root / "run", pictures=root / "pictures")


def contents(*folders):
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def dead(content):
    """A lock's content that says of its process that it was another one."""
    there = holder.parse(content)
    return dataclasses.replace(there, started=there.started - 1).to_bytes()


COMMANDS = {  # name -> (what is written: the run's or new; the words)
    "train": ("RUN", "train --workdir RUN"),
    "report": ("RUN/report", "report --workdir RUN"),
    "prepare": ("NEW", "prepare digits NEW --resolution 32 --workers 0"),
    "encode": (
        "NEW", f"encode --config {TINY}:vanilla --config.tokenizer.weights=RUN --output NEW"
    ),
    "evaluate-latents": ("NEW", "evaluate-latents PICTURES RUN --output NEW"),
    "convert": ("beside NEW", "convert RUN NEW"),
    "pretrain-teacher": (
        "beside NEW", f"pretrain-teacher --config {TINY} --config.teachers.small.weights=NEW"
    ),
    "study": ("NEW", f"study {STUDY} --output NEW"),
    "study --prepare": ("NEW", f"study {STUDY} --output NEW --prepare"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_two_writers_do_not_write_at_once(name, done, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("repae_jax.study.schedule.prepare", lambda words: None)
    places = {"RUN": done.workdir, "PICTURES": done.pictures, "NEW": tmp_path / "new"}
    held, command = COMMANDS[name]
    for word, path in places.items():
        held, command = (text.replace(word, str(path)) for text in (held, command))
    target = pathlib.Path(held.removeprefix("beside "))
    with (writing if held.startswith("beside") else writing_in)(target):
        before = contents(tmp_path, done.workdir)
        assert main([*command.split(), "--quiet"]) == 2
        assert contents(tmp_path, done.workdir) == before
    error = capsys.readouterr().err
    assert f"{target}: {REFUSED} (process {os.getpid()} on " in error
    assert error.count("\n") == 1


def test_two_processes_do_not_make_the_same_run_of_a_study(tmp_path):
    study, job = read_config(STUDY, []), Job("vae", 0)
    with (
        writing_in(job.workdir(tmp_path)),
        pytest.raises(UserError, match=f"{job.workdir(tmp_path)}: {REFUSED}"),
    ):
        run_job(study, job, tmp_path, progress=False)


def test_readers_are_not_held_up(done, tmp_path):
    with writing_in(done.workdir):
        before = contents(done.workdir)
        assert main(["inspect", str(done.workdir)]) == 0
        assert main(["convert", str(done.workdir), str(tmp_path / "vae"), "--quiet"]) == 0
        assert main(["evaluate-vae", str(done.workdir), str(done.pictures), "--quiet"]) == 0
        assert contents(done.workdir) == before


def test_what_a_killed_process_left_confuses_nobody(done, tmp_path):
    workdir, target = shutil.copytree(done.workdir, tmp_path / "run"), tmp_path / "new"
    for make, path in ((writing_in, workdir / ".lock"), (writing, tmp_path / ".new.lock")):
        with make(workdir if make is writing_in else target):
            content = path.read_bytes()
        path.write_bytes(dead(content))
    assert main(["inspect", str(workdir)]) == 0
    assert main(["convert", str(workdir), str(target), "--quiet"]) == 0
    assert main(["train", "--workdir", str(workdir), "--quiet"]) == 0
    assert not list(tmp_path.rglob("*.lock"))


def test_a_run_that_another_has_taken_over_ends(done, tmp_path, capsys, monkeypatch):
    """As on a host that slept: it ends at the next step and saves no more."""
    workdir = shutil.copytree(done.workdir, tmp_path / "run")
    monkeypatch.setattr(lock, "TIMES", Times(beat=0.01, patience=0.2, look=0.01))

    def step(state, batch, key, requests):
        if state.step == STEPS + 5:
            there = holder.parse((workdir / ".lock").read_bytes())
            theirs = dataclasses.replace(there, token="theirs", host="node7")
            (workdir / ".lock").write_bytes(theirs.to_bytes())
        time.sleep(0.01)
        return state.replace(step=state.step + 1), {"skipped": jnp.zeros(()), "stop": 0}

    monkeypatch.setattr(Program, "step", property(lambda self: step))
    run = ["--config.run.steps=1000", "--config.run.checkpoint_every=500"]
    assert main(["train", "--workdir", str(workdir), *run, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert f"{workdir}: another process has taken over writing there (process " in error
    assert "on node7" in error
    assert saved_steps(workdir) == [STEPS]
    assert holder.parse((workdir / ".lock").read_bytes()).token == "theirs"


def start(arguments):
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(TINY).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-m", "repae_jax", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow  # a process that compiles the step
def test_a_second_train_in_a_work_directory_is_refused(tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = words(workdir, "none", checkpoint_every=20, log_every=20)
    arguments[2] = f"{TINY}:vae"
    arguments.remove("--config.teachers.small.weights=none")
    forever = [*arguments, "--config.run.steps=100000"]
    first = start(forever)
    try:
        wait_for((workdir / "checkpoints" / "20").is_dir, first)
        assert main(forever) == 2
        error = capsys.readouterr().err
        assert (
            f"{workdir}: {REFUSED} (process {first.pid} on {os.uname().nodename}, `repae" in error
        )
        later = max(saved_steps(workdir)) + 40
        wait_for((workdir / "checkpoints" / str(later)).is_dir, first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        last = max(saved_steps(workdir))
        assert main([*arguments, f"--config.run.steps={last}"]) == 0  # a dead one does not block
    finally:
        first.kill()
