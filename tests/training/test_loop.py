"""The loop: what a work directory holds, going on, interruption, exact resume, bad directories."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from runs import TINY, start, wait_for, words

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.checkpoints import restore_latest
from repae_jax.runs.metrics import read_history

KILLS = int(os.environ.get("REPAE_KILLS", "1"))  # twenty-five take eight minutes
# Contract 2 of the design: the names of the original's log.
METRICS = set(
    "denoising_loss proj_loss sit_loss vae_align_loss reconstruction_loss perceptual_loss kl_loss "
    "gan_loss weighted_gan_loss vae_loss d_loss lecam_loss logits_real logits_fake "
    "grad_norm_sit grad_norm_vae grad_norm_disc".split()
)
OWN_METRICS = {"latent_std", "images_per_second", "skipped_steps"}


@pytest.mark.slow
def test_a_work_directory_is_the_whole_run(trained):
    assert json.loads((trained / "config.json").read_text())["name"] == "tiny"
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == ["2", "4", "record.json"]
    assert (trained / "checkpoints" / "4" / "checksums.json").is_file()
    assert "params/backbone/" in (trained / "sharding.txt").read_text()
    assert (trained / "samples" / "0000004.png").read_bytes().startswith(b"\x89PNG")
    page = (trained / "samples.html").read_text()
    assert "Step 4 of 4" in page
    assert "refresh" not in page  # the run is done
    history = read_history(trained)
    assert set(history) == METRICS | OWN_METRICS
    for steps, values in history.values():
        assert steps.tolist() == [1, 2, 3, 4]
        assert np.isfinite(values).all()


def test_more_steps_go_on_from_the_last(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main(words(workdir, teacher, steps=5)) == 0
    printed = capsys.readouterr().out
    assert f"samples: {workdir}/samples.html, every " in printed
    assert "resuming from step 4\ncompiling the train step\n" in printed
    assert restore_latest(workdir)["step"] == 5
    assert json.loads((workdir / "config.json").read_text())["run"]["steps"] == 5


def test_a_run_past_its_last_step_says_so(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main(words(workdir, teacher, steps=3)) == 0
    printed = capsys.readouterr().out
    assert "nothing to do: the run is at step 4, past config.run.steps 3" in printed
    assert "done" not in printed
    assert "compiling" not in printed
    assert restore_latest(workdir)["step"] == 4


@pytest.mark.slow
def test_a_profile_is_of_the_last_steps_of_a_short_run(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main([*words(workdir, teacher, steps=11), "--profile"]) == 0
    assert "traced steps 7 to 11: tensorboard --logdir" in capsys.readouterr().out
    (traced,) = workdir.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    content = traced.read_bytes()
    assert b"step_num" in content  # by which XProf tells the steps from each other
    assert len(read_history(workdir)["vae_loss"][0]) == 11


@pytest.mark.slow
def test_sample_and_report_use_the_run(trained, tmp_path, capsys):
    output = tmp_path / "grid.png"
    options = ["--output", str(output), "--quiet", "--guidance-scale", "2"]
    assert main(["sample", "--workdir", str(trained), "--labels", "3,1,4", *options]) == 0
    with Image.open(output) as grid:
        assert grid.size == (3 * 34 + 2, 34 + 2)
    assert main(["report", "--workdir", str(trained), "--samples", "20", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "Generated digits read as requested" in printed
    assert "Reconstruction of held-out images" in printed
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64") == 4
    assert "proj_loss is minus the cosine" in page


def test_sample_refuses_classes_that_do_not_exist(trained, capsys):
    assert main(["sample", "--workdir", str(trained), "--labels", "3,10"]) == 2
    assert "--labels has 10: the run's classes are 0 to 9" in capsys.readouterr().err
    assert main(["sample", "--workdir", str(trained), "--labels", "3,x"]) == 2
    assert "--labels is '3,x'" in capsys.readouterr().err
    assert main(["sample", "--workdir", str(trained), "--method", "ddim"]) == 2
    assert "ddim" in capsys.readouterr().err


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_another_config_is_refused_and_nothing_changes(trained, teacher, capsys):
    before = contents(trained)
    assert main([*words(trained, teacher), "--config.seed=7"]) == 2
    error = capsys.readouterr().err
    assert "config.seed: 0 -> 7" in error
    assert error.count("\n") == 1
    assert contents(trained) == before


def test_a_damaged_config_file_is_named(trained, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text((trained / "config.json").read_text()[:50])
    with pytest.raises(UserError, match="config.json is damaged"):
        work_directory.load_config(workdir)
    with pytest.raises(UserError, match="config.json is damaged"):
        work_directory.check(workdir, tiny.get_config())


def test_stored_config_comes_back_whole(trained, teacher):
    config = tiny.get_config()
    config.teachers.small.weights = str(teacher)
    assert work_directory.load_config(trained).to_dict() == config.to_dict()


def test_a_stored_config_may_be_saved_by_an_editor_that_marks_the_byte_order(trained, tmp_path):
    text = (trained / "config.json").read_text()
    (tmp_path / "config.json").write_text(text, "utf-8-sig")
    marked, stored = map(work_directory.load_config, (tmp_path, trained))
    assert marked.to_dict() == stored.to_dict()


def test_a_frozen_vae_comes_from_another_run(trained, teacher, tmp_path):
    # `repa` on the VAE that the first run tuned: its latents' statistics are measured.
    workdir = tmp_path / "repa"
    arguments = words(workdir, teacher, steps=1)
    arguments[2] = f"{TINY}:repa"
    assert main([*arguments, f"--config.tokenizer.weights={trained}"]) == 0
    state, source = restore_latest(workdir), restore_latest(trained)
    jax.tree.map(
        np.testing.assert_array_equal, state["params"]["tokenizer"], source["params"]["tokenizer"]
    )
    assert set(state["opt_state"]) == {"backbone"}
    assert not np.allclose(state["batch_stats"]["latent_norm"]["var"], 1.0)


@pytest.mark.slow  # processes, each with its own start-up and compilation
def test_killed_runs_end_in_the_same_state(teacher, tmp_path):
    """Killed in start-up, in a step, in a save: whenever."""
    run = dict(steps=40, checkpoint_every=4, log_every=10)
    whole = tmp_path / "whole"
    for workdir in (tmp_path / "first", whole):  # the second finds everything compiled, as all do
        started = time.monotonic()
        process = start(words(workdir, teacher, **run))
        assert process.wait(timeout=240) == 0, process.communicate()[1][-2000:]
        seconds = time.monotonic() - started
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        broken = tmp_path / f"broken{runs}"
        while True:
            process = start(words(broken, teacher, **run))
            try:
                process.wait(timeout=seconds * rng.uniform(0.1, 1.0) if kills < KILLS else 240)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                print(f"kill {kills} in run {runs}", flush=True)
                continue
            assert process.returncode == 0, process.communicate()[1][-2000:]
            break
        assert_same_state(whole, broken)


def assert_same_state(one, other):
    a, b = restore_latest(one), restore_latest(other)
    assert a["step"] == b["step"]
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.slow  # a process of its own each
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(number, teacher, tmp_path):
    workdir = tmp_path / "run"
    process = start(words(workdir, teacher, steps=100_000, checkpoint_every=50_000))
    events = workdir / "tensorboard"
    wait_for(lambda: any(p.stat().st_size > 5000 for p in events.glob("*")), process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors[-2000:]
    step = int(restore_latest(workdir)["step"])
    assert step > 0
    assert f"stopped at step {step} of 100000, saved" in output


def test_the_wrong_weights_leave_no_work_directory(teacher, trained, tmp_path, capsys):
    wrong = tmp_path / "vae.safetensors"
    shutil.copy(teacher, wrong)  # a teacher's tensors are no VAE's
    assert main([*words(tmp_path / "run", teacher), f"--config.tokenizer.weights={wrong}"]) == 2
    assert str(wrong) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
