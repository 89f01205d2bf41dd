"""A run that diverges: what it saves, what it says, and that what it says works."""

import json
import re
import shlex
import shutil
import types

import jax
import numpy as np
import pytest
import tiny
from runs import TINY, words
from stub_loop import run_stub

from repae_jax.cli import main
from repae_jax.errors import Diverged, UserError
from repae_jax.runs import going_back
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.checkpoints import Checkpoints, restore_latest, saved_steps
from repae_jax.runs.metrics import MetricWriter, read_history
from repae_jax.runs.retention import Record, Retention
from repae_jax.training.monitor import Monitor

FAR = [
    f"--config.optimizer.{name}.learning_rate=1e6"
    for name in ("backbone", "tokenizer", "discriminator")
]
TOTALS = {"sit_loss", "vae_loss", "d_loss"}


def command_in(said):
    """The words of the command in a message, as a shell takes them."""
    assert said.count("\n") == 1
    program, option, package, *arguments = shlex.split(said.rpartition("rates: ")[2])
    assert (program, option, package) == ("python", "-m", "repae_jax")
    return arguments


def assert_ordinary(workdir, steps):
    """Every step's losses are there, once, and what they are in the tiny run."""
    history = read_history(workdir)
    for name in TOTALS & history.keys():
        numbers, values = history[name]
        assert numbers.tolist() == list(range(1, steps + 1))
        assert np.isfinite(values).all()
        assert (values < 4).all()


@pytest.mark.slow
def test_a_run_that_begins_too_fast_is_begun_again(tmp_path, capsys):
    workdir = tmp_path / "run"
    run = ["--config.run.steps=30", "--config.run.checkpoint_every=2", *FAR]
    assert (
        main(["train", "--config", f"{TINY}:vae", *run, "--workdir", str(workdir), "--quiet"]) == 2
    )
    said = capsys.readouterr()
    assert "step 11: 10 steps in a row had a loss or gradient that is not finite" in said.err
    assert re.search(r"\((\w+) is (nan|inf) at step 2 was the first\)", said.err)
    assert said.out.count("warning:") == 1  # not one a step
    assert saved_steps(workdir) == []
    assert main([*command_in(said.err), "--quiet"]) == 0
    assert_ordinary(workdir, 30)


@pytest.mark.slow
def test_a_run_that_becomes_too_fast_goes_back(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "a run"  # which a shell wants quoted
    shutil.copytree(trained, workdir)
    run = dict(steps=30, checkpoint_every=1, keep_checkpoints=1)
    assert main(words(workdir, teacher, *FAR, **run)) == 2
    said = capsys.readouterr()
    assert "from step 4: config.optimizer.tokenizer.learning_rate: 0.0001 -> 1000000.0" in said.out
    # 5 was saved before anything was not finite, and is of no use; 4 has shown that it is.
    assert saved_steps(workdir) == [4, 5]
    command = command_in(said.err)
    assert command[command.index("--from-step") + 1] == "4"
    assert main([*command, "--quiet"]) == 0
    assert_ordinary(workdir, 30)
    assert restore_latest(workdir / "aside-1")["step"] == 5
    assert work_directory.load_config(workdir / "aside-1").optimizer.tokenizer.learning_rate == 1e6
    assert Checkpoints(workdir / "aside-1", read_only=True).proven_step() is None
    before = (workdir / "aside-1" / "config_history.jsonl").read_text()
    assert (workdir / "config_history.jsonl").read_text().startswith(before)
    lines = (workdir / "config_history.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["step"] == second["step"] == second["from_step"] == 4
    assert "config.optimizer.backbone.learning_rate: 1000000.0 -> 0.0001" in second["changed"]
    # The same command once more, as after a signal, has nothing to go back to.
    capsys.readouterr()
    assert main([*command, "--quiet"]) == 0
    assert "resuming from step 30" in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_steps_give_the_same_state(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main([*words(workdir, teacher), "--from-step", "2"]) == 0
    assert "after step 2 are in" in capsys.readouterr().out
    again, first = restore_latest(workdir), restore_latest(trained)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert (workdir / "aside-1" / "samples" / "0000004.png").is_file()
    assert (workdir / "aside-1" / "samples.html").is_file()
    assert (workdir / "samples.html").is_file()  # of the samples drawn again
    assert main([*words(workdir, teacher), "--from-step", "3"]) == 2
    error = capsys.readouterr().err
    assert f"--from-step is 3: {workdir} can be continued from 0 (the beginning), 2, 4" in error
    assert saved_steps(workdir) == [2, 4]


@pytest.mark.slow
def test_going_back_to_the_end_changes_nothing(trained, teacher, tmp_path):
    """But a run with steps to train notes it: the same command resumes, after a signal."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    history = workdir / "config_history.jsonl"
    assert not history.exists()
    assert main([*words(workdir, teacher), "--from-step", "4"]) == 0
    assert not history.exists()
    command = [*words(workdir, teacher, steps=5), "--from-step", "4"]
    assert main(command) == 0
    (entry,) = map(json.loads, history.read_text().splitlines())
    assert (entry["step"], entry["from_step"]) == (4, 4)
    assert main(command) == 0
    assert saved_steps(workdir)[-1] == 5
    assert not (workdir / "aside-1").exists()


def damage(folder):
    path = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_told_before_the_later_ones_are_set_aside(
    trained, teacher, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    damage(workdir / "checkpoints" / "2")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert main([*words(workdir, teacher), "--from-step", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: --from-step is 2: checkpoint {workdir / 'checkpoints' / '2'} is"
    )
    assert error.endswith(f"{workdir} can be continued from 0 (the beginning), 4\n")
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    damage(workdir / "checkpoints" / "4")
    (workdir / "origin.safetensors").touch()
    with pytest.raises(UserError, match="can be continued from no other: restore one from a copy"):
        going_back.check_step(workdir, 4)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_may_begin_anew(trained, teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for step in ("2", "4"):
        damage(workdir / "checkpoints" / step)
    assert main(words(workdir, teacher)) == 2
    error = capsys.readouterr().err
    assert "no other of 2 can be read: restore one from a copy, or begin anew" in error
    assert "train --from-step 0" in error
    assert error.count("\n") == 1
    assert main([*words(workdir, teacher), "--from-step", "0"]) == 0
    jax.tree.map(np.testing.assert_array_equal, restore_latest(workdir), restore_latest(trained))
    assert saved_steps(workdir / "aside-1") == [2, 4]


def test_what_was_set_aside_is_a_work_directory_of_its_own(trained, teacher, tmp_path, capsys):
    """It continues with its own data alone, and moves back with one command."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "origin.safetensors").write_bytes(b"of an import")
    name = going_back.set_aside(workdir, 2)
    aside = workdir / name
    for file in ("config.json", "data.json", "origin.safetensors"):
        assert (aside / file).read_bytes() == (workdir / file).read_bytes()
    (aside / "origin.safetensors").unlink()
    assert main(words(aside, teacher)) == 0
    assert "from step 4" in capsys.readouterr().out
    data = json.loads((aside / "data.json").read_text())
    data["train"]["count"] -= 1
    data.pop("sha256", None)  # as one who means the edit
    (aside / "data.json").write_text(json.dumps(data))
    assert main(words(aside, teacher)) == 2
    assert "1441 -> 1442 images (+1)" in capsys.readouterr().err
    shutil.move(aside / "checkpoints" / "4", workdir / "checkpoints")  # as docs/training.md has it
    state = restore_latest(workdir)
    jax.tree.map(np.testing.assert_array_equal, state, restore_latest(trained))


def test_an_imported_run_has_no_beginning_of_its_own(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "origin.safetensors").touch()
    with pytest.raises(UserError, match="can be continued from 2, 4$"):
        going_back.check_step(tmp_path / "run", 0)
    command = going_back.recovery_command(tmp_path / "run", tiny.get_config(), None, processes=1)
    assert "--from-step 2 " in command


def test_the_way_back_is_slower_than_the_way():
    config = tiny.get_config()
    config.dtype = "bfloat16"
    config.optimizer.tokenizer.learning_rate = 1e-5
    command = going_back.recovery_command(tiny_path := "runs/x", config, 7, processes=2)
    assert command.startswith(f"python -m repae_jax train --workdir {tiny_path} --from-step 7 ")
    assert "--config.optimizer.tokenizer.learning_rate=1e-06" in command
    assert "--config.optimizer.backbone.learning_rate=1e-05" in command
    assert command.endswith("--config.dtype=float32")
    assert "--distributed" in command


# --- what may change ---


@pytest.mark.parametrize(
    "change",
    ["dtype='bfloat16'", *(f"optimizer.backbone.{key}={value}" for key, value in dict(
        learning_rate=1.0, warmup_steps=7, decay_steps=70, weight_decay=0.1, max_grad_norm=2.0
    ).items())],
)  # fmt: skip
def test_how_far_a_step_goes_may_change(change, tmp_path):
    config = tiny.get_config()
    work_directory.claim(tmp_path, config)
    exec(f"config.{change}", {"config": config})
    (line,) = work_directory.claim(tmp_path, config, step=3)
    assert line.startswith(f"config.{change.partition('=')[0]}: ")
    entry = json.loads((tmp_path / "config_history.jsonl").read_text())
    assert (entry["step"], entry["changed"]) == (3, [line])
    assert work_directory.load_config(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("key", "value"), [("name", "muon"), ("b1", 0.5), ("b2", 0.5), ("eps", 0.5)]
)
def test_what_the_moments_mean_may_not(key, value, tmp_path):
    config = tiny.get_config()
    work_directory.claim(tmp_path, config)
    config.optimizer.backbone[key] = value
    with pytest.raises(UserError, match=f"config.optimizer.backbone.{key}"):
        work_directory.check(tmp_path, config)


# --- what is saved ---


def run(skipped, steps, every, signal_at=None):
    """Runs the loop with these steps skipped; gives the status, what was saved, what was due."""
    stopping, saved = types.SimpleNamespace(requested=False, note=lambda: None), {}

    def metrics_of(step):
        stopping.requested |= step == signal_at
        return {"skipped": step in skipped, "stop": 0, "vae_loss": np.nan}

    monitor = Monitor(4, "warn", lambda line: None, "--from-step {}".format)
    try:
        status = run_stub(saved, monitor, metrics_of, steps=steps, every=every, stopping=stopping)
    except Diverged:
        status = "diverged"
    return status, saved


@pytest.mark.parametrize(
    ("skipped", "signal_at", "expected"),
    [
        ([], None, (0, {3: 3, 6: 6, 8: 8})),
        ([2, 4, 5], None, (0, {3: 3, 6: 6, 8: 8})),
        ([3, 4], None, (0, {5: 3, 6: 6, 8: 8})),  # a checkpoint waits
        ([6, 7, 8], None, (0, {3: 3, 9: 6})),  # the last one, too
        ([7, 8], None, (0, {3: 3, 6: 6, 9: 8})),
        ([], 4, (75, {3: 3, 4: 4})),
        ([4, 5], 4, (75, {3: 3, 6: 4})),  # that of a signal, too
        ([7, 8, 9], 7, (0, {3: 3, 6: 6, 10: 7})),
        (range(5, 99), 5, ("diverged", {3: 3})),
        (range(8, 99), None, ("diverged", {3: 3, 6: 6})),
    ],
)
def test_nothing_is_saved_while_steps_are_skipped(skipped, signal_at, expected):
    assert run(skipped, steps=8, every=3, signal_at=signal_at) == expected


def kept(steps, record, newest=1, every=0):
    checkpoints = [types.SimpleNamespace(step=step) for step in steps]
    stay = Retention(newest, every, record).should_preserve(checkpoints, context=None)
    return [step for step, stays in zip(steps, stay, strict=True) if stays]


def test_the_last_proven_checkpoint_stays(tmp_path):
    record = Record(tmp_path, [], write=True)
    record.judge(None, {"vae_loss": 0.7, "sit_loss": 2.0, "kl_loss": 1e9})  # the run's first step
    for step, loss in ((2, 0.6), (4, 0.5), (6, 71.0), (8, 1e30)):
        record.judge(step, {"vae_loss": 0.6, "sit_loss": loss})
    assert record.proven == {2, 4, 6}
    record.forget(2)
    record.judge(2, {"vae_loss": 1e9})
    assert record.proven == {4, 6}
    assert kept([2, 4, 6, 8, 10, 12], record) == [6, 12]
    assert kept([2, 4, 6, 8, 10, 12], record, newest=2, every=4) == [4, 6, 8, 10, 12]
    record.late.add(10)
    assert kept([2, 4, 6, 8, 10, 12], record, every=9) == [6, 10, 12]
    record.write([4, 6, 8, 10])
    again = Record(tmp_path, [4, 6, 8, 10], write=False)
    assert (again.proven, again.late, again.begun) == ({4, 6}, {10}, True)
    assert Record(tmp_path, [4, 10], write=False).proven == {4}  # 6 has been set aside
    again.judge(10, {"vae_loss": 71.0, "sit_loss": 0.5})  # of the run, not of its continuation
    again.judge(8, {"vae_loss": 101.0, "sit_loss": 0.5})
    assert again.proven == {4, 6, 10}


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", '{"proven": 3}', '{"losses": [], "proven": []}', "[" * 100_000,
     '{"losses": {}, "proven": [Infinity], "late": []}'],
    ids=range(7),
)  # fmt: skip
def test_without_a_record_all_but_the_newest_are_taken_for_proven(text, tmp_path):
    if text is not None:
        (tmp_path / "record.json").write_text(text)
    assert Record(tmp_path, [2, 4, 6], write=False).proven == {2, 4}


def test_an_edited_record_counts_as_none(tmp_path):
    path = tmp_path / "record.json"
    record = Record(tmp_path, [], write=True)
    for step in (2, 4):
        record.judge(step, {"vae_loss": 0.6})
    record.write([2, 4, 6])
    assert Record(tmp_path, [2, 4, 6], write=False).proven == {2, 4}
    path.write_text(path.read_text().replace("[2, 4]", "[2, 6]"))
    assert Record(tmp_path, [2, 4, 6, 8], write=False).proven == {2, 4, 6}
    content = json.loads(path.read_text())
    del content["sha256"]  # as versions before wrote it
    path.write_text(json.dumps(content))
    assert Record(tmp_path, [2, 4, 6, 8], write=False).proven == {2, 6}


def test_a_step_proves_the_checkpoint_before_it(tmp_path):
    from repae_jax.runs.state import TrainState

    def save(step):
        checkpoints.save(step, TrainState(np.int32(step), {}, {}, {}, {}, {}), {})

    def follow(step, loss):
        checkpoints.follow(step, lambda: {"vae_loss": loss})

    checkpoints = Checkpoints(tmp_path, keep=1)
    follow(1, 1.0)
    for step in (1, 2):
        save(step)
        follow(step, 1.0)  # whose metrics are of the state before it
        assert checkpoints.proven_step() == (step - 1 or None)
        follow(step + 1, 1.0)
        assert checkpoints.proven_step() == step
    save(5)
    follow(6, np.float32(1e30))
    save(7)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 7]
    assert checkpoints.proven_step() == 2
    assert checkpoints.proven_step(before=2) is None
    checkpoints.close()


# --- curves ---


def test_curves_end_where_a_run_has_come_again(tmp_path):
    for begun, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}), (2, {3: 30.0})):
        writer = MetricWriter(tmp_path, begun)
        for step, value in values.items():
            writer.scalars(step, {"loss": value, **({"rare": value} if step % 4 == 0 else {})})
        writer.close()
    history = read_history(tmp_path)
    assert history["loss"][0].tolist() == [1, 2, 3]
    assert history["loss"][1].tolist() == [1.0, 2.0, 30.0]
    assert len(history.get("rare", [[]])[0]) == 0


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000], ids=range(4))
def test_a_damaged_history_is_none(text, tmp_path):
    (tmp_path / "config_history.jsonl").write_text(text)
    assert work_directory.last_history_entry(tmp_path) == {}
