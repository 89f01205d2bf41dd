"""Weights & Biases gets what TensorBoard gets; its faults end no training."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tiny
from PIL import Image
from runs import TINY

from repae_jax.cli import main
from repae_jax.config.needs import check_files
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.runs import wandb_writer
from repae_jax.runs.wandb_writer import WandbWriter
from repae_jax.training.logger import Logger

ROOT = pathlib.Path(__file__).parents[2]


class StubRun:
    """What a run of wandb got."""

    def __init__(self, fault=None, finish=None):
        self.logged, self.fault = [], fault
        self.given = {}
        self.config = types.SimpleNamespace(update=lambda values, **_: self.given.update(values))
        self.define_metric = lambda *names, **options: None
        self._finish = finish

    def log(self, values):
        if self.fault:
            raise self.fault
        self.logged.append(values)

    def finish(self):
        if self._finish:
            raise self._finish


class UsageError(Exception):
    pass


class AuthenticationError(ConnectionError):
    pass


@pytest.fixture
def stub(monkeypatch):
    """A module wandb whose `init` does what the test puts into `answers`, in order."""
    made = types.SimpleNamespace(calls=[], answers=[], torn_down=0)

    def init(**options):
        made.calls.append(options)
        answer = made.answers.pop(0) if made.answers else StubRun()
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = types.ModuleType("wandb")
    module.init, module.Settings, module.Image = init, lambda **options: options, lambda a: a.shape
    module.errors = types.SimpleNamespace(
        UsageError=UsageError, AuthenticationError=AuthenticationError
    )
    module.teardown = lambda: None
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def config_of(project="team/digits"):
    config = tiny.get_config("vae")
    config.run.wandb = project
    return config


def test_entity_and_project_are_named_and_the_id_stays(stub, tmp_path):
    WandbWriter(tmp_path, config_of()).close()
    WandbWriter(tmp_path, config_of()).close()
    WandbWriter(tmp_path, config_of("other")).close()
    first, second, other = stub.calls
    assert (first["entity"], first["project"]) == ("team", "digits")
    assert (other["entity"], other["project"]) == (None, "other")
    assert first["id"] == second["id"] != other["id"]
    assert first["resume"] == "allow"
    assert set(json.loads((tmp_path / "wandb.json").read_text())) == {"team/digits", "other"}


def test_the_configuration_is_given_as_json(stub, tmp_path):
    config = config_of()
    config.optimizer.tokenizer.max_grad_norm = float("inf")
    stub.answers[:] = [run := StubRun()]
    WandbWriter(tmp_path, config).close()
    assert run.given["optimizer"]["tokenizer"]["max_grad_norm"] == "inf"
    assert run.given["batch_size"] == config.batch_size
    json.dumps(run.given, allow_nan=False)


def test_a_run_that_went_back_is_a_new_one(stub, tmp_path):
    WandbWriter(tmp_path, config_of()).close()
    (tmp_path / "aside-1").mkdir()
    wandb_writer.start_over(tmp_path, "aside-1")
    WandbWriter(tmp_path, config_of()).close()
    WandbWriter(tmp_path / "aside-1", config_of()).close()  # the old run continues there
    wandb_writer.start_over(tmp_path, "")
    WandbWriter(tmp_path, config_of()).close()
    ids = [call["id"] for call in stub.calls]
    assert ids[2] == ids[0]
    assert len({*ids}) == 3
    wandb_writer.start_over(tmp_path / "aside-1" / "none", "")  # no run: nothing to do


def test_without_an_answer_the_run_is_written_offline(stub, tmp_path, capsys):
    stub.answers[:] = [ConnectionError("no route"), run := StubRun()]
    writer = WandbWriter(tmp_path, config_of())
    writer.write_scalars(3, {"loss": np.float32(0.5)})
    writer.close()
    assert [call.get("mode") for call in stub.calls] == [None, "offline"]
    assert stub.calls[0]["id"] == stub.calls[1]["id"]
    assert run.logged == [{"loss": 0.5, "step": 3}]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "does not answer (no route)" in error
    assert f"`wandb sync {tmp_path}/wandb/offline-run-*`" in error


def test_a_wandb_that_does_not_work_at_all_ends_no_run(stub, tmp_path, capsys):
    stub.answers[:] = [ConnectionError("no route"), OSError("no program")]
    writer = WandbWriter(tmp_path, config_of())
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert "does not work offline either (no program)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [UsageError, AuthenticationError])
def test_without_a_login_the_run_does_not_begin(kind, stub, tmp_path):
    stub.answers[:] = [kind("no key")]
    with pytest.raises(UserError, match=r"'team/digits', but .*refuses .*`wandb login`, or set WA"):
        WandbWriter(tmp_path, config_of())


def test_a_later_fault_ends_the_writing_alone_with_one_warning(stub, tmp_path, capsys):
    stub.answers[:] = [run := StubRun()]
    writer = WandbWriter(tmp_path, config_of())
    writer.write_images(1, {"samples": np.zeros((1, 4, 6, 3), np.uint8)})
    run.fault = BrokenPipeError("gone")
    for step in (2, 3):
        writer.write_scalars(step, {"loss": 1.0})
    writer.close()
    assert run.logged == [{"samples": [(4, 6, 3)], "step": 1}]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "takes no metrics from step 2 on (gone): training continues" in error


def test_the_end_of_a_run_does_not_wait_for_ever(stub, tmp_path, capsys):
    stub.answers[:] = [StubRun(finish=TimeoutError("timed out"))]
    WandbWriter(tmp_path, config_of()).close()
    assert 0 < stub.calls[0]["settings"]["finish_timeout"] <= 120
    assert stub.calls[0]["settings"]["finish_timeout_raises"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did not take the last metrics (timed out): `wandb sync" in error


def test_only_the_first_process_writes(stub, tmp_path):
    for first in (False, True):
        logger = Logger(config_of(), tmp_path, first=first, progress=False)
        logger.begin(0)
        logger.close()
        assert len(stub.calls) == first


def test_a_missing_package_is_said_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    expected = "wandb is not installed: pip install wandb (config.run.wandb is 'digits'"
    with pytest.raises(UserError) as refused:
        check_files(config_of("digits"))
    assert expected in str(refused.value)
    words = ["--config", f"{TINY}:vae", "--workdir", str(tmp_path / "run"), "--quiet"]
    assert main(["train", *words, "--config.run.wandb=digits"]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["a/b/c", "/x", "x/", "a b", "a#b"])
def test_a_project_that_is_none_is_refused(wrong):
    with pytest.raises(UserError, match="config.run.wandb is '.*': name a project"):
        validate(config_of(wrong))


# --- wandb itself, offline ---


def chunks(path):
    """The records of a file in LevelDB's log format, as wandb writes it behind seven bytes."""
    content, at, record = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no header fits the rest of the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield record
            record = b""


def complete(path):
    """The records of a file once the last one is there, which wandb's own process writes late."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = list(chunks(path))
        if found and Record.FromString(found[-1]).WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def items(pairs):
    return {pair.key or "/".join(pair.nested_key): json.loads(pair.value_json) for pair in pairs}


def records(folder):
    """(ids of the runs, configuration, {metric: {step: value}}) of offline runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, config, history = [], {}, {}
    for path in sorted(folder.glob("offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime):
        for record in map(Record.FromString, complete(path)):
            config |= items(record.config.update) | items(record.run.config.update)
            ids += [record.run.run_id] if record.run.run_id else []
            row = items(record.history.item)
            for name, value in row.items():
                history.setdefault(name, {})[row["step"]] = value
    return ids, config, history


def test_images_and_scalars_are_in_wandbs_files(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = WandbWriter(tmp_path, config_of("digits"))
    writer.write_scalars(2, {"loss": np.float32(0.25), "evaluation/fid": 3.0})
    writer.write_images(2, {"samples": np.full((1, 8, 16, 3), 7, np.uint8)})
    writer.close()
    _, config, history = records(tmp_path / "wandb")
    assert history["loss"] == {2: 0.25}
    assert history["evaluation/fid"] == {2: 3.0}
    assert config["batch_size"] == config_of().batch_size
    assert history["samples/_type"] == {2: "images/separated"}
    [file] = (tmp_path / "wandb").rglob("media/images/*.png")
    pixels = np.asarray(Image.open(file))
    assert pixels.shape == (8, 16, 3)
    assert (pixels == 7).all()


@pytest.mark.slow  # trains twice
def test_a_resumed_run_continues_the_same_run_of_wandb(tmp_path):
    pytest.importorskip("wandb")
    from repae_jax.runs.metrics import read_history

    words = [sys.executable, "-m", "repae_jax", "train", "--workdir", str(tmp_path / "run")]
    words += ["--quiet", "--config.run.log_every=1"]
    first = ["--config", f"{TINY}:vae", "--config.run.wandb=digits", "--config.run.steps=2"]
    env = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(sys.path)}
    for more in (first, ["--config.run.steps=4", "--config.run.checkpoint_every=3"]):
        done = subprocess.run(
            [*words, *more], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "wandb" not in done.stderr
    ids, config, history = records(tmp_path / "run" / "wandb")
    assert len({*ids}) == 1
    assert config["run"]["steps"] == 4
    events = read_history(tmp_path / "run")
    assert len(events) > 5
    for name, (steps, values) in events.items():
        np.testing.assert_allclose([history[name][step] for step in steps], values, rtol=1e-6)
        assert list(steps) == [1, 2, 3, 4]
