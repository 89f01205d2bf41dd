"""Faults thrown at a run: each ends in a clear message and a state to go on from."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import cluster
import jax
import numpy as np
import pytest
from runs import TINY, wait_for, words

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.parallel.mesh import make_mesh
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.training.monitor import Monitor
from repae_jax.training.prefetch import Prefetch


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- values that are not finite ---

BROKEN_IMAGE = """
import functools, jax, numpy as np, tiny
from repae_jax.parallel.mesh import make_mesh, place_batch
from repae_jax.runs.build import build_models, fresh_state
from repae_jax.training.program import Program

config = tiny.get_config("vanilla")
config.mesh.update(fsdp=4, smallest=64)
program = Program(config, build_models(config), make_mesh(-1, 4))
make = jax.jit(functools.partial(fresh_state, config, program.models),
               out_shardings=program.shardings)
state = make(jax.random.key(0))
rng = np.random.default_rng(0)
good = {
    "latent_mean": rng.normal(size=(8, 8, 8, 2)).astype(np.float32),
    "latent_std": np.ones((8, 8, 8, 2), np.float32),
    "label": np.arange(8, dtype=np.int32),
}
bad = {**good, "latent_mean": good["latent_mean"].copy()}
bad["latent_mean"][5, 3, 3, 0] = np.nan  # one image, which is on one device

def parts(state):  # every device's own copy or part
    return [np.asarray(s.data) for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards]

def run(state, batch):
    step, key = program.step, program.key()
    return step(state, place_batch(program.mesh, batch), key, program.requests(False))

assert len(jax.devices()) == 8
state, metrics = run(state, good)
assert metrics["skipped"] == 0
before = parts(state.replace(step=None))
state, metrics = run(state, bad)
assert metrics["skipped"] == 1 and np.isnan(metrics["denoising_loss"])
assert int(state.step) == 2
for old, new in zip(before, parts(state.replace(step=None)), strict=True):
    np.testing.assert_array_equal(old, new)
state, metrics = run(state, good)
assert metrics["skipped"] == 0 and np.isfinite(metrics["denoising_loss"])
print("as it should be")
"""


@pytest.mark.slow  # a process with eight devices compiles the step
def test_a_nan_in_one_image_skips_the_step_on_all_devices(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    path = os.pathsep.join([str(pathlib.Path(TINY).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_IMAGE], env={**os.environ, "XLA_FLAGS": flags,
        "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("as it should be"), done.stderr[-3000:]


@pytest.mark.slow  # compiles a sampler
def test_a_grid_of_samples_that_are_not_finite_is_a_warning(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    words = ["train", "--workdir", str(workdir), "--quiet", "--config.run.steps=5"]
    assert main([*words, "--config.sampling.guidance_scale=1e39"]) == 0
    told = capsys.readouterr().out
    assert "warning: step 5: 80 of 80 samples are black" in told
    assert "from sampling step 1 on" in told
    assert "look alike" not in told
    assert (workdir / "samples" / "0000005.png").exists()


# --- damaged checkpoints ---


@pytest.mark.slow
def test_whatever_file_of_the_newest_checkpoint_is_damaged(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    folder = trained / "checkpoints" / "4"
    names = [path.relative_to(trained) for path in files_of(folder) if path.parent != folder]
    assert len(names) > 10
    expected = restore_latest(trained)
    for number, name in enumerate(names[::3]):
        shutil.copytree(trained, workdir)
        path = workdir / name
        if number % 2 and path.stat().st_size:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
        state = restore_latest(workdir)
        assert state["step"] == 2
        said = capsys.readouterr().out
        assert path.name in said
        assert "; using step 2" in said
        assert (workdir / "checkpoints" / "4").is_dir()  # a reader leaves it where it is
        shutil.rmtree(workdir)
    assert restore_latest(trained)["step"] == expected["step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a flipped bit", "cut short, without checksums"])
def test_a_run_goes_on_from_the_checkpoint_before(damage, trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    folder = workdir / "checkpoints" / "4"
    path = max(files_of(folder / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:  # of a run from before there were any
        (folder / "checksums.json").unlink()
        (folder / "_CHECKPOINT_METADATA").unlink()
        path.write_bytes(content[:100])
    assert main(words(workdir, teacher)) == 0
    said = capsys.readouterr().out
    assert str(folder) in said
    assert "; resuming from step 2" in said
    assert (workdir / "checkpoints" / "damaged-4").is_dir()
    again, first = restore_latest(workdir), restore_latest(trained)
    jax.tree.map(np.testing.assert_array_equal, again["params"], first["params"])


def test_nothing_but_damaged_checkpoints_is_an_error(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in ("2", "4"):
        shutil.rmtree(workdir / "checkpoints" / step / "state")
    assert main(words(workdir, teacher, steps=6)) == 2
    error = capsys.readouterr().err
    assert str(workdir / "checkpoints" / "4") in error
    assert error.count("\n") == 1
    assert (workdir / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_some_checkpoints_are_kept_for_ever(trained, teacher, tmp_path):
    workdir = tmp_path / "run"
    run = dict(steps=8, checkpoint_every=1, keep_checkpoints=1, keep_every=3)
    assert main(words(workdir, teacher, **run)) == 0
    steps = {path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()}
    assert steps == {"3", "6", "7", "8"}  # 7 is the last that another step was taken from


# --- disks, folders, data ---


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only a superuser may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_run_goes_on_with_room(trained, teacher, tmp_path, capsys):
    size = sum(path.stat().st_size for path in files_of(trained / "checkpoints" / "4"))
    with small_disk(tmp_path / "disk", f"{int(2.5 * size / 1024) + 600}k") as disk:
        workdir = disk / "run"
        assert main(words(workdir, teacher, steps=12, checkpoint_every=2, keep_checkpoints=9)) == 2
        error = capsys.readouterr().err
        assert "cannot be written" in error
        assert "run the same command" in error
        assert error.count("\n") == 1
        saved = int(restore_latest(workdir)["step"])
        assert saved >= 2
        shutil.copytree(workdir, tmp_path / "roomy")
    assert main(words(tmp_path / "roomy", teacher, steps=12, keep_checkpoints=9)) == 0
    assert f"resuming from step {saved}" in capsys.readouterr().out


def test_a_work_directory_that_is_gone_is_said(teacher, tmp_path, capsys, monkeypatch):
    workdir, step = tmp_path / "run", Monitor.check_step

    def removing(self, number, *skipped):
        if number == 2:
            shutil.rmtree(workdir)
        return step(self, number, *skipped)

    monkeypatch.setattr(Monitor, "check_step", removing)
    assert main(words(workdir, teacher, steps=6, checkpoint_every=4)) == 2
    error = capsys.readouterr().err
    assert f"{workdir / 'checkpoints'}: the checkpoint of step 4 cannot be written" in error
    assert "has been removed" in error


class Stuck:
    """Batches of which the third never comes."""

    def __init__(self):
        self.taken, self.release, self.closed = 0, threading.Event(), threading.Event()

    def __next__(self):
        self.taken += 1
        if self.taken == 3:
            self.release.wait()
        return {"label": np.zeros(8, np.int32)}

    def get_state(self):
        return {"taken": self.taken}

    def close(self):
        self.closed.set()


def test_stuck_data_is_said_in_time():
    batches = Stuck()
    prefetch = Prefetch(batches, make_mesh(), timeout=1.0)
    for number in (1, 2):
        next(prefetch)
        assert prefetch.state == {"taken": number}  # not that of the batch read ahead
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no batch for 1 s: .* stuck"):
        next(prefetch)
    assert 0.9 < time.monotonic() - started < 5
    prefetch.close()
    batches.release.set()
    assert batches.closed.wait(5)


def test_an_error_of_the_data_reaches_the_loop():
    class Broken(Stuck):
        def __next__(self):
            raise UserError("cat.jpg is no image")

    prefetch = Prefetch(Broken(), make_mesh(), timeout=60)
    with pytest.raises(UserError, match="cat.jpg"):
        next(prefetch)
    prefetch.close()


# --- processes ---


@pytest.mark.slow  # two processes that compile the step
def test_a_lost_process_ends_the_other(teacher, tmp_path):
    workdir = tmp_path / "run"
    run = words(workdir, teacher, steps=100_000, checkpoint_every=20, log_every=20)
    first, second = started = cluster.command(run, processes=2, devices=1)
    try:
        wait_for((workdir / "checkpoints" / "20").is_dir, first)
        second.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, said = first.communicate(timeout=120)
        assert time.monotonic() - killed < 120
        assert first.returncode == 75, said[-2000:]
        assert "the devices of another process do not answer" in said
    finally:
        for process in started:
            process.kill()
    assert int(restore_latest(workdir)["step"]) >= 20


@pytest.mark.slow  # two processes that compile the step
def test_a_signal_to_one_process_saves_and_ends_all(teacher, tmp_path):
    workdir = tmp_path / "run"
    run = words(workdir, teacher, steps=100_000, checkpoint_every=50_000, log_every=1)
    first, second = started = cluster.command(run, processes=2, devices=1)
    events = workdir / "tensorboard"
    wait_for(lambda: any(p.stat().st_size > 5000 for p in events.glob("*")), first)
    second.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    ends = cluster.finish(started, timeout=60)
    assert time.monotonic() - sent < 30
    assert [status for status, _, _ in ends] == [75, 75], ends
    step = int(restore_latest(workdir)["step"])
    assert f"stopped at step {step} of 100000, saved" in ends[0][1]


# --- nothing hidden in the loop ---


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program that is compiled."""
    import jax.monitoring

    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.clear_event_listeners()


@pytest.mark.slow
def test_warm_steps_transfer_and_compile_nothing_hidden(
    teacher, tmp_path, monkeypatch, compilations
):
    step, calls, before = Monitor.check_step, [], []

    def guarded(self, number, *skipped):
        calls.append(number)
        if number == 5:
            before.append(len(compilations))
            jax.config.update("jax_transfer_guard", "disallow")
        if number == 55:
            jax.config.update("jax_transfer_guard", "allow")
            before.append(len(compilations))
        return step(self, number, *skipped)

    monkeypatch.setattr(Monitor, "check_step", guarded)
    try:
        run = dict(steps=58, checkpoint_every=1000, log_every=10)
        assert main(words(tmp_path / "run", teacher, **run)) == 0
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert calls == list(range(1, 59))
    assert before[0] > 0
    assert before[0] == before[1]
