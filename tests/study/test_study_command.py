import json
import math
import os
import pathlib
import re
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import tiny_study
from sklearn.neighbors import KNeighborsClassifier

from repae_jax.cli import main
from repae_jax.data.digits import load_digits_split
from repae_jax.errors import TryAgain, UserError
from repae_jax.evaluation.reconstruction import mean_psnr
from repae_jax.runs.open_run import open_run
from repae_jax.study.judge import load_judge, train_judge
from repae_jax.study.plan import MEASURES, Job, jobs
from repae_jax.study.results import read_results, write_results
from repae_jax.study.schedule import run_all
from repae_jax.utils.images import to_float, to_uint8

STUDY = str(pathlib.Path(tiny_study.__file__))


def run(output, *words):
    return main(["study", STUDY, "--output", str(output), "--quiet", *words])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that has run, two runs side by side."""
    output = tmp_path_factory.mktemp("study")
    assert run(output, "--jobs", "2") == 0
    return output


@pytest.mark.slow  # three processes, one a run, each of which imports, compiles and trains
def test_a_study_runs_measures_and_reports(done):
    results = read_results(done / "results.jsonl")
    assert [(r["arm"], r["seed"]) for r in results] == [("vae", 0), ("sit", 0), ("repae", 0)]
    for result in results:
        assert set(result["accuracies"]) == {"the judge", "the teacher small"}
        assert list(result["figures"]) == ["2", "4"]
        expected = set(MEASURES) if result["arm"] != "vae" else set()
        expected |= {"psnr", "latent_variance", "latent_within", "latent_detail"}
        expected |= {"latent_common", "spatial_variance", "total_variation"}
        assert set(result["figures"]["4"]) <= expected
        assert all(math.isfinite(v) for v in result["figures"]["4"].values())
    assert {"frechet", "precision", "recall", "class_accuracy"} < set(results[1]["figures"]["4"])
    tables, page = (done / "tables.md").read_text(), (done / "report.html").read_text()
    for text in ("REPA-E", "it is ahead", "cknna, frechet"):
        assert text in tables
        assert text in page
    assert page.count("<img") >= 5


@pytest.mark.slow
def test_figures_are_of_the_states_that_the_run_has_kept(done):
    """The VAE's last PSNR, from its checkpoint by another way."""
    opened = open_run(Job("vae", 0).workdir(done))
    images = load_digits_split("heldout").images
    chosen = np.sort(np.random.default_rng(0).choice(len(images), 30, replace=False))
    vae, params = opened.models.tokenizer, {"params": opened.state.params["tokenizer"]}
    latents = vae.apply(params, to_float(images[chosen]), method="encode").mean
    again = np.asarray(to_uint8(vae.apply(params, latents, method="decode")))
    results = read_results(done / "results.jsonl")
    assert results[0]["figures"]["4"]["psnr"] == pytest.approx(
        mean_psnr(images[chosen], again), rel=1e-4
    )
    assert results[0]["figures"]["2"]["psnr"] != results[0]["figures"]["4"]["psnr"]


@pytest.mark.slow
def test_frozen_arms_keep_the_vae_that_they_took(done):
    results = {r["arm"]: r for r in read_results(done / "results.jsonl")}
    assert results["sit"]["figures"]["2"]["psnr"] == results["vae"]["figures"]["4"]["psnr"]
    assert results["repae"]["figures"]["4"]["psnr"] != results["vae"]["figures"]["4"]["psnr"]
    assert results["repae"]["gflop_per_image"] > results["sit"]["gflop_per_image"]


@pytest.mark.slow  # one more such process
def test_a_run_that_is_gone_is_made_again_to_the_same_figures(done, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(done, copy)
    shutil.rmtree(Job("repae", 0).workdir(copy))
    kept = Job("vae", 0).workdir(copy) / "result.json"
    before = kept.stat().st_mtime_ns
    # In the same place, since a run's configuration names the files that it takes.
    moved = tmp_path / "moved"
    done.rename(moved)
    copy.rename(done)
    try:
        assert run(done, "--jobs", "2", "--against", str(moved / "results.jsonl")) == 0
        assert (Job("vae", 0).workdir(done) / "result.json").stat().st_mtime_ns == before
    finally:
        shutil.rmtree(done)
        moved.rename(done)


@pytest.mark.slow
def test_a_changed_study_is_refused_where_it_changes_a_run(done, capsys):
    assert run(done, "--config.config.batch_size=16") == 2
    said = capsys.readouterr().err
    assert "config.batch_size: 8 -> 16" in said
    assert "take another --output" in said


@pytest.mark.slow
def test_figures_measured_in_another_way_are_refused(done, capsys):
    assert run(done, "--report", "--config.measures.samples=30") == 2
    assert "config.measures.samples: 20 -> 30" in capsys.readouterr().err


@pytest.fixture
def copy(done, tmp_path):
    """The study that has run, somewhere else."""
    return pathlib.Path(shutil.copytree(done, tmp_path / "copy"))


@pytest.mark.slow
def test_a_study_may_move(done, copy):
    assert run(copy, "--report") == 0
    assert (copy / "results.jsonl").read_text() == (done / "results.jsonl").read_text()


@pytest.mark.slow
def test_networks_of_another_recipe_are_refused(copy, capsys):
    for change in ("judge.steps=5", "config.teachers.small.pretrain.steps=7"):
        assert run(copy, f"--config.{change}") == 2
        said = capsys.readouterr().err
        assert f"{copy} is of another study: config.{change.split('=')[0]}: " in said


@pytest.mark.slow
def test_a_judge_that_is_gone_is_not_made_anew_for_results_that_are_there(copy, capfd):
    judge = copy / "judge.safetensors"
    judge.unlink()
    assert run(copy) == 2
    assert f"{judge} is gone, with which the results" in capfd.readouterr().err
    assert not judge.exists()


def test_files_of_who_knows_what_are_refused(tmp_path, capsys):
    (tmp_path / "judge.safetensors").write_bytes(b"")
    assert run(tmp_path) == 2
    assert "holds judge.safetensors, but no study.json" in capsys.readouterr().err


@pytest.mark.slow
def test_on_a_vae_that_diverged_no_run_is_begun(copy):
    path = Job("vae", 0).workdir(copy) / "result.json"
    result = json.loads(path.read_text())
    del result["sha256"]  # the edit is meant
    path.write_text(json.dumps({**result, "diverged": "the losses are not finite"}))
    shutil.rmtree(Job("sit", 0).workdir(copy))
    assert run(copy, "--run", "sit:0") == 0
    left = json.loads((Job("sit", 0).workdir(copy) / "result.json").read_text())
    assert left["diverged"] == "vae:0, whose VAE it takes, diverged: the losses are not finite"
    assert left["figures"] == {}
    assert [path.name for path in Job("sit", 0).workdir(copy).iterdir()] == ["result.json"]


@pytest.mark.slow
def test_a_run_whose_vae_is_missing_says_which_to_run_first(copy, capsys):
    for arm in ("vae", "sit"):
        (Job(arm, 0).workdir(copy) / "result.json").unlink()
    assert run(copy, "--run", "sit:0") == 2
    assert "sit:0 takes the VAE of vae:0, which is not done: --run vae:0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_result_is_named(copy, capsys):
    path = Job("sit", 0).workdir(copy) / "result.json"
    path.write_text("{")
    assert run(copy, "--report") == 2
    assert f"{path} is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_other_figures_than_another_time_are_told(done, tmp_path, capsys):
    others = read_results(done / "results.jsonl")
    others[2]["figures"]["4"]["psnr"] += 1e-12
    write_results(tmp_path / "others.jsonl", others)
    assert run(done, "--report", "--against", str(tmp_path / "others.jsonl")) == 1
    said = capsys.readouterr().out
    assert "others.jsonl: 2 of 3 runs have the same figures" in said
    assert "repae:0.figures.4.psnr: " in said
    assert run(done, "--report", "--against", str(done / "results.jsonl")) == 0
    assert "3 of 3 runs have the same figures" in capsys.readouterr().out


@pytest.mark.slow
def test_more_claims_change_no_run(done, capsys):
    assert run(done, "--report", "--config.claims.ahead.measure=psnr") == 0
    assert "psnr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--run", "other:0"], "--run is 'other:0': give ARM:SEED"),
        (["--run", "vae"], "--run is 'vae'"),
        (["--run", "vae:" + "9" * 5000], "--run is 'vae:9.* and a seed below 1"),
        (["--run", "vae:1"], "--run is 'vae:1': give ARM:SEED, .* and a seed below 1"),
        (["--jobs", "4096"], "--jobs is 4096, but there are"),
        (["--report"], "holds no result yet"),
        (["--against", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--config.config.backbone.depth=0"], "arm"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, words, message):
    assert run(tmp_path / "new", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_what_is_no_study_is_named(tmp_path, capsys):
    words = ["study", str(tiny_study.TINY), "--output", str(tmp_path), "--quiet"]
    assert main(words) == 2
    assert "is no study" in capsys.readouterr().err


def test_a_failed_run_ends_the_study_and_names_its_log(tmp_path):
    study = tiny_study.get_config()
    with pytest.raises(UserError, match=r"vae:0 ended with status 2 \(error: .*; see .*study.log"):
        run_all(
            study, tmp_path, lambda job: ["train", "--workdir", str(tmp_path)], lambda job: False,
            progress=False,
        )  # fmt: skip
    assert not Job("sit", 0).workdir(tmp_path).exists()  # nothing was begun on what is missing


def run_as(script, folder, monkeypatch):
    """A shell script, whose "$3" is the first word of a run's command, takes the runs' place."""
    file = folder / "run.sh"
    file.write_text(f"#!/bin/sh\n{script}")
    file.chmod(0o755)
    monkeypatch.setattr("repae_jax.study.schedule.sys.executable", str(file))


@pytest.mark.slow
def test_a_signal_ends_the_runs_too_which_are_told_once(tmp_path, monkeypatch):
    script = "trap 'echo told; sleep 3; exit 75' TERM\necho begun\nsleep 60 & wait\n"
    run_as(script, tmp_path, monkeypatch)
    log = Job("vae", 0).workdir(tmp_path) / "study.log"

    def interrupt():
        while not log.is_file() or "begun" not in log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(TryAgain, match="interrupted; run the same command to resume"):
        run_all(
            tiny_study.get_config(), tmp_path, lambda job: [], lambda job: False, progress=False
        )
    assert log.read_text().split() == ["begun", "told"]
    assert not Job("sit", 0).workdir(tmp_path).exists()


def test_no_core_waits_while_a_run_is_ready(tmp_path, monkeypatch):
    """Two VAEs train side by side, though other runs stand between them in the order."""
    script = (
        f'cd {tmp_path}; echo "$3" >> begun; [ "$3" = vae:0 ] || exit 0\n'
        "for i in $(seq 100); do grep -q vae:1 begun && exit 0; sleep 0.1; done; exit 1\n"
    )
    run_as(script, tmp_path, monkeypatch)
    monkeypatch.setattr("repae_jax.study.schedule.divide_cores", lambda count: [None] * count)
    study = tiny_study.get_config()
    study.seeds = 2
    run_all(
        study, tmp_path, lambda job: [str(job)], lambda job: False, side_by_side=2, progress=False
    )
    begun = (tmp_path / "begun").read_text().split()
    assert sorted(begun) == sorted(map(str, jobs(study)))
    for job in jobs(study):
        if vae := study.arms[job.arm].vae:
            assert begun.index(str(job)) > begun.index(str(Job(vae, job.seed)))


def test_a_bar_that_cannot_be_written_ends_the_study(tmp_path, monkeypatch):
    """A broken pipe, for example: the current runs get SIGTERM, and no other run starts."""
    script = f'cd {tmp_path}; echo "$3" >> begun; [ "$3" = vae:0 ] || sleep 60\n'
    run_as(script, tmp_path, monkeypatch)
    monkeypatch.setattr("repae_jax.study.schedule.divide_cores", lambda count: [None] * count)

    def update(bar, count=1):
        raise BrokenPipeError

    monkeypatch.setattr("tqdm.tqdm.update", update)
    study, started = tiny_study.get_config(), time.monotonic()
    study.seeds = 3
    with pytest.raises(BrokenPipeError):
        run_all(
            study, tmp_path, lambda job: [str(job)], lambda job: False, side_by_side=2,
            progress=False,
        )  # fmt: skip
    assert time.monotonic() - started < 30
    assert len((tmp_path / "begun").read_text().split()) < len(jobs(study))


def test_more_runs_than_cores_are_refused(tmp_path):
    with pytest.raises(UserError, match="--jobs is 4096"):
        run_all(tiny_study.get_config(), tmp_path, list, bool, side_by_side=4096, progress=False)


@pytest.mark.slow  # trains a classifier until it is one
def test_the_judge_learns_and_is_read_back(tmp_path):
    study = tiny_study.get_config()
    study.judge.update(channels=(16, 32), steps=250, batch_size=64)
    path = tmp_path / "judge.safetensors"
    train_judge(study, study.config.data, path, progress=False)
    judge = load_judge(study, path)
    assert judge.accuracy > 0.9
    part = load_digits_split("heldout")
    features, classes = judge(part.images)
    assert features.shape == (355, 32)
    assert (classes == part.labels).mean() == pytest.approx(judge.accuracy)
    # Its features hold the classes: their nearest neighbours are of the same.
    nearest = KNeighborsClassifier(1).fit(features[::2], part.labels[::2])
    assert nearest.score(features[1::2], part.labels[1::2]) > 0.9


@pytest.mark.slow
def test_a_judge_of_another_size_is_refused(done):
    study = tiny_study.get_config()
    study.judge.channels = (8, 16)
    with pytest.raises(UserError, match=r"judge.safetensors: tensor .* has shape"):
        load_judge(study, done / "judge.safetensors")


@pytest.mark.slow  # the shared networks are trained anew
def test_results_of_another_folder_are_taken(done, tmp_path, capsys):
    """Their runs are not run again, and a result of other settings is none of the study's."""
    moved = tmp_path / "moved"
    assert run(moved, "--report", "--take", str(done / "results.jsonl")) == 0
    capsys.readouterr()
    assert read_results(moved / "results.jsonl") == read_results(done / "results.jsonl")
    assert run(moved, "--report", "--against", str(done / "results.jsonl")) == 0
    results = read_results(done / "results.jsonl")
    results[0]["config"]["batch_size"] += 1
    write_results(tmp_path / "others.jsonl", results)
    assert run(tmp_path / "new", "--report", "--take", str(tmp_path / "others.jsonl")) == 2
    assert "vae:0 is of another configuration: config.batch_size" in capsys.readouterr().err
    assert not (tmp_path / "new" / "runs").exists()
    results = read_results(done / "results.jsonl")
    results[1]["accuracies"]["the judge"] /= 2
    write_results(tmp_path / "others.jsonl", results)
    assert run(tmp_path / "new", "--report", "--take", str(tmp_path / "others.jsonl")) == 2
    assert "sit:0 was measured by other networks" in capsys.readouterr().err
    assert not (tmp_path / "new" / "runs").exists()
    results[0]["arm"] = "nothing"
    write_results(tmp_path / "others.jsonl", results)
    assert run(tmp_path / "new", "--report", "--take", str(tmp_path / "others.jsonl")) == 2
    assert "nothing:0, which is no run of the study" in capsys.readouterr().err
