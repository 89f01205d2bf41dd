"""`generate`: the same set on any devices and after any kill, in files that others read."""

import ast
import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc

import cluster
import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from runs import wait_for

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.evaluation.figures import image_grid
from repae_jax.sampling import generate_command
from repae_jax.sampling.labels import choose_labels
from repae_jax.training import workdir as work_directory
from repae_jax.training.run import open_run

KILLS = int(os.environ.get("REPAE_KILLS", "1"))
SIDE = 32


@pytest.fixture(scope="module")
def run(random_run):
    """A work directory whose images depend on their classes, as after training."""
    return random_run


@pytest.fixture(scope="module")
def opened(run):
    """The run as it is loaded, which takes seconds: once for all tests that only paint."""
    return open_run(run)


@pytest.fixture
def painted(opened, monkeypatch):
    """Replaces the networks by a function of index and label; returns the list of its batches."""
    batches = []
    monkeypatch.setattr(generate_command, "open_run", lambda workdir, mesh: opened)

    def make_generate(*_, **__):
        def generate(weights, key, indices, labels):
            batches.append(np.asarray(indices))
            return paint(np.asarray(indices), np.asarray(labels))

        return generate

    monkeypatch.setattr(generate_command, "make_generate", make_generate)
    return batches


def paint(indices, labels):
    images = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
    images[..., 0] = (indices % 256)[:, None, None]
    images[..., 1] = (indices // 256)[:, None, None]
    images[..., 2] = labels[:, None, None]
    return images


def words(run, output, **options):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return ["generate", "--workdir", str(run), "--output", str(output), "--quiet", *given]


def read_streaming(path):
    """The first array of an .npz, image by image, without a zip or numpy reader.

    What a reader relies on that goes through the file once: the member comes first, is not
    compressed, and its header knows its length.
    """
    with open(path, "rb") as file:
        head = struct.unpack("<4s5H3I2H", file.read(30))
        signature, flags, method, size, name_length, extra_length = (head[i] for i in (0, 2, 3, 8, 9, 10))  # fmt: skip  # noqa: E501
        assert (signature, flags & 8, method) == (b"PK\x03\x04", 0, 0)
        assert file.read(name_length) == b"arr_0.npy"
        extra = file.read(extra_length)
        if size == 2**32 - 1:
            assert struct.unpack("<HH", extra[:4]) == (1, 16)
            (size,) = struct.unpack("<Q", extra[4:12])
        end = file.tell() + size
        assert file.read(8) == b"\x93NUMPY\x01\x00"
        (length,) = struct.unpack("<H", file.read(2))
        header = ast.literal_eval(file.read(length).decode("latin1"))
        assert header["fortran_order"] is False
        assert header["descr"] == "|u1"
        count, *shape = header["shape"]
        for _ in range(count):
            yield np.frombuffer(file.read(int(np.prod(shape))), np.uint8).reshape(shape)
        assert file.tell() == end


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is written ---


def test_an_npz_is_read_by_others(run, painted, tmp_path, capsys):
    assert main(words(run, tmp_path / "x.npz", count=70, batch_size=16)) == 0
    labels = np.arange(70) % 10
    expected = paint(np.arange(70), labels)
    np.testing.assert_array_equal(np.stack(list(read_streaming(tmp_path / "x.npz"))), expected)
    with np.load(tmp_path / "x.npz") as content:
        assert content.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(content["arr_0"], expected)
        assert content["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(content["arr_1"], labels)
    preview = np.asarray(Image.open(tmp_path / "x_preview.png"))
    np.testing.assert_array_equal(preview, image_grid(expected[:64], 8))
    about = json.loads((tmp_path / "x.json").read_text())
    assert (about["config"], about["step"], about["seed"]) == ("tiny", 4, 0)
    assert (about["method"], about["steps"], about["labels"]) == ("euler", 3, "balanced")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npz", "x_preview.png"]
    assert "x.npz: 70 images, 32x32, written" in capsys.readouterr().out


def test_a_folder_of_pngs(run, painted, tmp_path):
    output = tmp_path / "cfg1.5"
    assert main(words(run, output, count=20, batch_size=8, labels="random", seed=3)) == 0
    expected = paint(np.arange(20), choose_labels("random", 20, 10, 3)[0])
    assert sorted(path.name for path in output.iterdir()) == [f"{i:06d}.png" for i in range(20)]
    for index, image in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(Image.open(output / f"{index:06d}.png")), image)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cfg1.5", "cfg1.5.json", "cfg1.5_preview.png"]  # fmt: skip


def test_what_is_there_is_not_made_again(run, painted, tmp_path, capsys):
    options = dict(count=20, batch_size=8)
    for output in (tmp_path / "npz" / "x.npz", tmp_path / "png" / "x"):
        assert main(words(run, output, **options)) == 0
    whole = contents(tmp_path)
    painted.clear()
    capsys.readouterr()
    assert main(words(run, tmp_path / "npz" / "x.npz", **options)) == 0
    assert main(words(run, tmp_path / "png" / "x", **options)) == 0
    assert capsys.readouterr().out.count("are there already") == 2
    assert not painted
    # of lost and cut files their batches are made again, and no others
    (tmp_path / "png" / "x" / "000009.png").unlink()
    cut = tmp_path / "png" / "x" / "000017.png"
    cut.write_bytes(cut.read_bytes()[:-3])
    kept = (tmp_path / "png" / "x" / "000008.png").stat().st_mtime_ns
    assert main(words(run, tmp_path / "png" / "x", **options)) == 0
    assert [batch[0] for batch in painted] == [8, 16]
    assert contents(tmp_path) == whole
    assert (tmp_path / "png" / "x" / "000008.png").stat().st_mtime_ns == kept


def test_a_restart_goes_on_behind_the_last_whole_batch(run, painted, tmp_path, monkeypatch):
    options = dict(count=20, batch_size=8)
    assert main(words(run, tmp_path / "a" / "x.npz", **options)) == 0
    whole = contents(tmp_path / "a")
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        assert main(words(run, tmp_path / "b" / "x.npz", **options)) == 130
    partial = tmp_path / "b" / "x.npz.partial"
    assert partial.stat().st_size == 16 * SIDE * SIDE * 3
    with open(partial, "r+b") as file:  # in the middle of a write
        file.truncate(partial.stat().st_size - 5000)
    painted.clear()
    assert main(words(run, tmp_path / "b" / "x.npz", **options)) == 0
    assert [batch[0] for batch in painted] == [8, 16]
    assert contents(tmp_path / "b") == whole


def interrupt(monkeypatch, after):
    """Ctrl-C when that many batches have been written."""
    from repae_jax.sampling.outputs import Npz

    write, calls = Npz.write, []

    def writing(self, start, images):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(start)
        write(self, start, images)

    monkeypatch.setattr(Npz, "write", writing)


def test_memory_does_not_grow_with_the_images(run, painted, tmp_path):
    size = 8000 * SIDE * SIDE * 3  # 25 MB
    main(words(run, tmp_path / "warm.npz", count=400, batch_size=200))
    tracemalloc.start()
    try:
        assert main(words(run, tmp_path / "x.npz", count=8000, batch_size=200)) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.npz").stat().st_size > size
    assert peak < size / 4


# --- labels ---


def test_balanced_labels_differ_by_one_image_at_most():
    for count in (1, 9, 10, 1000, 1003):
        labels, _ = choose_labels("balanced", count, 10, 0)
        assert labels.shape == (count,)
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 1


def test_random_labels_follow_from_seed_and_index():
    labels, _ = choose_labels("random", 5000, 10, 7)
    np.testing.assert_array_equal(choose_labels("random", 33, 10, 7)[0], labels[:33])
    assert (choose_labels("random", 5000, 10, 8)[0] != labels).mean() > 0.8
    counts = np.bincount(labels, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi squared of 9: one in a thousand


def test_given_labels_are_repeated(tmp_path):
    labels, told = choose_labels("3,1,4", 7, 10, 0)
    assert labels.tolist() == [3, 1, 4, 3, 1, 4, 3]
    assert told == "3,1,4"
    many = ",".join(map(str, range(200)))  # longer than a file's name may be
    assert choose_labels(many, 200, 200, 0)[0].tolist() == list(range(200))
    (tmp_path / "classes.txt").write_text("3\n1, 4\n\n9\n")
    labels, told = choose_labels(str(tmp_path / "classes.txt"), 6, 10, 0)
    assert labels.tolist() == [3, 1, 4, 9, 3, 1]
    (tmp_path / "other.txt").write_text("3 1 4 8")
    assert choose_labels(str(tmp_path / "other.txt"), 6, 10, 0)[1] != told
    (tmp_path / "classes.txt").write_text("3 1 12")
    with pytest.raises(UserError, match="classes.txt .*has 12: the run's classes are 0 to 9"):
        choose_labels(str(tmp_path / "classes.txt"), 6, 10, 0)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(count=0), "--count is 0: give at least 1"),
        (dict(batch_size=0), "--batch-size is 0: give at least 1"),
        (dict(labels="3,10"), "--labels has 10: the run's classes are 0 to 9"),
        (dict(labels="many"), "--labels is 'many': give class numbers"),
        (dict(labels=","), "--labels is ',': give class numbers"),
        (dict(seed=-1), "--seed is -1"),
        (dict(method="ddim"), "method is 'ddim'"),
        (dict(guidance_scale=0.5), "guidance_scale is 0.5"),
    ],
)
def test_bad_options_are_one_line(options, message, run, tmp_path, capsys):
    assert main(words(run, tmp_path / "x.npz", **options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_sampled_is_said(tmp_path, capsys):
    output = tmp_path / "x.npz"
    work_directory.claim(tmp_path / "vae-run", tiny.get_config("vae"))
    assert main(words(tmp_path / "vae-run", output)) == 2
    assert "trained a VAE alone: there is nothing to sample from" in capsys.readouterr().err
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    assert main(words(tmp_path / "vae", output)) == 2
    assert "holds a VAE for diffusers" in capsys.readouterr().err
    (tmp_path / "0400000.pt").write_bytes(b"")
    assert main(words(tmp_path / "0400000.pt", output)) == 2
    assert f"convert {tmp_path / '0400000.pt'} DIRECTORY` makes one" in capsys.readouterr().err
    assert not output.exists()


def test_other_options_are_refused_in_the_same_place(run, painted, tmp_path, capsys, monkeypatch):
    finished = dict(count=20, batch_size=8)
    assert main(words(run, tmp_path / "x.npz", **finished)) == 0
    assert main(words(run, tmp_path / "x", **finished, seed=0)) == 2  # x.json says what x.npz is
    assert "was begun with files = 'npz', not 'png'" in capsys.readouterr().err
    interrupt(monkeypatch, after=1)
    assert main(words(run, tmp_path / "y.npz", **finished)) == 130
    capsys.readouterr()
    before = contents(tmp_path)
    for name in ("x.npz", "y.npz"):
        assert main(words(run, tmp_path / name, **finished, seed=1, guidance_scale=2)) == 2
        error = capsys.readouterr().err
        assert "was begun with guidance_scale = 1.0, not 2.0; seed = 0, not 1" in error
        assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_another_checkpoint_is_refused(run, painted, opened, tmp_path, capsys, monkeypatch):
    assert main(words(run, tmp_path / "x.npz", count=4)) == 0
    later = jax.tree.map(lambda leaf: leaf * 1.001, opened.state.ema)
    state = opened.state.replace(step=np.int32(6), ema=later)
    trained = dataclasses.replace(opened, state=state)
    monkeypatch.setattr(generate_command, "open_run", lambda workdir, mesh: trained)
    assert main(words(run, tmp_path / "x.npz", count=4)) == 2
    assert "was begun with step = 4, not 6; weights_sha256 = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "output", "message"),
    [
        ("x.npz", "x.npz", "x.npz exists already"),
        ("x.npz.partial", "x.npz", "x.npz exists already"),
        ("x.json", "x.npz", "x.json exists already and is something else"),
        ("x/a.png", "x", "x holds something else already (a.png)"),
        ("x/000000.png", "x", "x exists already"),
        ("x.npz/a", "x.npz", "is a folder"),
        ("x", "x", "is a file"),
        ("x", "x/y.npz", "cannot be written"),
        ("x", "y.zip", "give NAME.npz for one file, or a folder"),
    ],
)
def test_what_is_something_else_stays(there, output, message, run, painted, tmp_path, capsys):
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert main(words(run, tmp_path / output, count=4)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"{}"}


def test_two_commands_do_not_write_at_once(run, painted, tmp_path, capsys):
    from repae_jax.sampling.outputs import make_output

    with make_output(tmp_path / "x.npz", 4, (SIDE, SIDE, 3)).claimed():
        assert main(words(run, tmp_path / "x.npz", count=4)) == 2
    assert "another process is writing there" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["x.npz", "x"])
def test_a_full_disk_is_said_and_gone_on_from(output, run, painted, tmp_path, capsys):
    options = dict(count=40, batch_size=16)
    assert main(words(run, tmp_path / "whole" / output, **options)) == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 20 * SIDE * SIDE * 3 if output == "x.npz" else 20  # bytes a file
    about = tmp_path / "full" / "x.json"
    about.parent.mkdir()
    shutil.copy(tmp_path / "whole" / "x.json", about)  # as if the disk were full later
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert main(words(run, tmp_path / "full" / output, **options)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "cannot be written (File too large)" in error
    assert error.count("\n") == 1
    left = {str(path.relative_to(tmp_path / "full")) for path in (tmp_path / "full").rglob("*")}
    assert left <= {"x.json", "x.npz.partial", "x"}
    assert main(words(run, tmp_path / "full" / output, **options)) == 0
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


# --- kills, devices, processes ---


def test_outputs_survive_a_kill_before_every_file_call(tmp_path):
    script = pathlib.Path(__file__).with_name("killed_outputs.py")
    path = os.pathsep.join([str(script.parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    npz, png = done.stdout.split("\n")[:2]
    assert int(npz.removeprefix("x.npz ")) > 10
    assert int(png.removeprefix("x ")) > 10


@pytest.mark.slow  # every killed run is a process that starts and compiles
def test_a_killed_run_ends_in_the_same_bytes(run, tmp_path):
    options = dict(count=640, batch_size=8)
    assert main(words(run, tmp_path / "whole" / "x.npz", **options)) == 0
    whole = contents(tmp_path / "whole")
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        output = tmp_path / str(kills) / "x.npz"
        command = [sys.executable, "-m", "repae_jax", *words(run, output, **options)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda output=output: output.with_name("x.npz.partial").exists(), process)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() != 0
        assert main(words(run, output, **options)) == 0
        assert contents(output.parent) == whole
        shutil.rmtree(output.parent)


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory):
    """The images of one device, and the options that made them."""
    options = dict(count=21, seed=5, guidance_scale=1.5, guidance_high=0.8)
    output = tmp_path_factory.mktemp("alone") / "x.npz"
    assert main(words(run, output, **options, batch_size=21)) == 0
    with np.load(output) as content:
        images = content["arr_0"]
    assert len(np.unique(images.reshape(21, -1), axis=0)) == 21
    return images, options


@pytest.mark.slow  # each process starts and compiles for its devices
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1)])
def test_devices_and_processes_do_not_change_the_set(processes, devices, alone, run, tmp_path):
    images, options = alone
    output = tmp_path / "x.npz"
    command = words(run, output, **options, batch_size=7)  # rounded up to 8
    if processes > 1:
        ends = cluster.finish(cluster.command(command, processes, devices))
    else:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        done = subprocess.run([sys.executable, "-m", "repae_jax", *command],
                              env={**os.environ, "XLA_FLAGS": flags},
                              capture_output=True, text=True)  # fmt: skip
        ends = [(done.returncode, done.stdout, done.stderr)]
    for status, _, said in ends:
        assert status == 0, said[-2000:]
    with np.load(output) as content:
        assert np.abs(content["arr_0"].astype(int) - images).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npz", "x_preview.png"]


@pytest.mark.slow  # two processes that start and compile
def test_a_fault_in_the_first_process_ends_both(run, tmp_path):
    # The preview's name is taken by a folder, which shows when the first images are there.
    (tmp_path / "x_preview.png" / "a").mkdir(parents=True)
    command = words(run, tmp_path / "x.npz", count=64, batch_size=4)
    started = time.monotonic()
    ends = cluster.finish(cluster.command(command, processes=2))
    assert [status for status, _, _ in ends] == [2, 2]
    assert "x_preview.png: cannot be written" in ends[0][2]
    assert time.monotonic() - started < 100
