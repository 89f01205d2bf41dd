"""What `generate` refuses, and a full disk: one line each, and what is there stays."""

import dataclasses
import resource
import shutil

import jax
import numpy as np
import pytest
import tiny
from painting import SIDE, contents, interrupt, words

from repae_jax.cli import main
from repae_jax.runs import workdir as work_directory


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
        (dict(guidance_scale=-0.5), "guidance_scale is -0.5"),
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
    assert (
        f"{tmp_path}/x.json already describes {tmp_path}/x.npz, and {tmp_path}/x would need the "
        "same file: choose another name" in capsys.readouterr().err
    )
    assert main(words(run, tmp_path / "z", **finished)) == 0
    assert main(words(run, tmp_path / "z.npz", **finished)) == 2
    assert f"{tmp_path}/z.json already describes {tmp_path}/z, and" in capsys.readouterr().err
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


@pytest.mark.slow
@pytest.mark.parametrize("output", ["x.npz", "x"])
def test_what_failed_before_its_first_image_may_be_begun_anew(output, run, tmp_path, capsys):
    options = dict(count=2, batch_size=2, steps=2)
    assert main(words(run, tmp_path / output, **options, guidance_scale="1e36")) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    assert main(words(run, tmp_path / output, **options, guidance_scale=1.5)) == 0
    assert main(words(run, tmp_path / "another" / output, **options, guidance_scale=1.5)) == 0
    there = contents(tmp_path / "another")
    assert {name: data for name, data in contents(tmp_path).items() if "another" not in
            str(name)} == there  # fmt: skip
    # what has images stays, also where another form of output is asked for
    capsys.readouterr()
    for other in {"x.npz", "x"} | {output}:
        assert main(words(run, tmp_path / other, **options, guidance_scale=1.25)) == 2
        error = capsys.readouterr().err
        assert ("was begun with" if other == output else "x.json already describes") in error


def test_another_checkpoint_is_refused(run, painted, opened, tmp_path, capsys, monkeypatch):
    assert main(words(run, tmp_path / "x.npz", count=4)) == 0
    later = jax.tree.map(lambda leaf: leaf * 1.001, opened.state.ema)
    state = opened.state.replace(step=np.int32(6), ema=later)
    trained = dataclasses.replace(opened, state=state)
    monkeypatch.setattr(
        "repae_jax.runs.open_run.open_run", lambda workdir, mesh, step=None: trained
    )
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
