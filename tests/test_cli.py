"""The command line: bad input is one line with status 2, at once, and nothing is written."""

import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest
from runs import TINY

from repae_jax import commands
from repae_jax.cli import COMMANDS, main, make_parser
from repae_jax.config import validate

# --help of one command, then of all; and the modules that are imported after each.
HELP = """\
import contextlib, io, json, sys

from repae_jax.cli import COMMANDS, main

found = []
for words in (["inspect", "--help"], [], ["--help"], *([name, "--help"] for name in COMMANDS)):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(words)
    assert printed.getvalue().startswith("usage: "), words
    found.append([words, list(sys.modules)])
json.dump(found, sys.stdout)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "nope.py"], "no config file nope.py"),
        (
            ["train", "--config", TINY, "--config.backbone.dept=3"],
            "did you mean config.backbone.depth?",
        ),
        (["train", "--config", TINY, "--config.backbone=3"], "config.backbone"),
        (["train", "--config", TINY, "--config.backbone.depth=many"], "invalid literal"),
        (["train", "--config", f"{TINY}:repa-e"], "no recipe 'repa-e'"),
        (["train", "--config", TINY, "--config.backbone.patch_size=3"], "patch size 3"),
        (["train", "--config", TINY], "teacher.safetensors', which does not exist"),
        (["pretrain-teacher", "--config", TINY, "--teacher", "big"], "config.teachers has small"),
        (
            ["pretrain-teacher", "--config", TINY, "--config.teachers.small.weights="],
            "config.teachers.small.weights is empty: name the file",
        ),
        (["report", "--workdir", "run", "--seed", "-1"], "--seed is -1: give 0 to 4294967295"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train":
        arguments = [*arguments, "--workdir", "run"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["sample", "report"])
def test_a_missing_run_is_named(command, tmp_path, capsys):
    assert main([command, "--workdir", str(tmp_path / "run")]) == 2
    assert "holds no run: config.json is missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


LOST = "has lost config.json, without which its checkpoints cannot be read: restore it ("


@pytest.mark.parametrize(
    "command",
    ["train --workdir {}", "train --config {config}:vae --workdir {}", "sample --workdir {}",
     "generate --output x.npz --workdir {}", "report --workdir {}",
     "evaluate-alignment --workdir {}", "inspect {}", "convert {} vae"],
)  # fmt: skip
def test_a_lost_configuration_has_one_message(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    words = command.format(run, config=TINY).split()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{run} {LOST}take it from a backup, or copy the config.json of a run with" in error
    (run / "aside-1").mkdir()
    (run / "aside-1" / "config.json").write_text("{}")
    (run / "config_history.jsonl").write_text("{}\n")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{LOST}{run}/aside-1/config.json is of the same run" in error
    assert "config_history.jsonl lists what has changed)" in error


@pytest.mark.parametrize("value", ["-1e30", "-1E-3", "-.5e+1", "-5.", "-1_0", "-inf", "-nan"])
@pytest.mark.parametrize("command", ["sample", "generate"])
def test_every_number_below_zero_is_a_value_and_no_option(command, value):
    words = [command, "--workdir", "x", "--output", "y"]
    for option in ("--guidance-scale", "--guidance-low", "--guidance-high"):
        found = vars(make_parser().parse_args([*words, option, value]))
        number = found[option.removeprefix("--").replace("-", "_")]
        assert number == pytest.approx(float(value), nan_ok=True)


def test_an_option_is_no_number(tmp_path, capsys):
    words = ["sample", "--workdir", str(tmp_path), "--guidance-scale"]
    for other in ("-e5", "-h", "--seed", "-1e", "-infinit"):
        with pytest.raises(SystemExit) as end:
            main([*words, other])
        assert end.value.code == 2
        assert "argument --guidance-scale: expected one argument" in capsys.readouterr().err


def test_an_error_in_the_config_file_is_reported(tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    assert main(["train", "--config", str(path), "--workdir", str(tmp_path / "run")]) == 2
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_a_configuration_is_checked_once(tmp_path, capsys, monkeypatch):
    checked, check_values = [], validate.check_values
    monkeypatch.setattr(
        validate, "check_values", lambda config: [checked.append(config), check_values(config)]
    )
    (tmp_path / "run").write_text("")
    assert main(["train", "--config", f"{TINY}:vae", "--workdir", str(tmp_path / "run")]) == 2
    assert "run is a file" in capsys.readouterr().err
    assert len(checked) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_command_and_its_options(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: python -m repae_jax {command} [-h]")
    assert any(word in output for word in ("--workdir", "--config", "--output", "PATH"))


def test_no_command_prints_the_way_in(capsys):
    assert main([]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for name in COMMANDS:
        module = importlib.import_module(f"repae_jax.commands.{name.replace('-', '_')}")
        assert f" {name} {module.SUMMARY}" in output


def test_every_file_of_commands_is_a_command_or_shared():
    folder = pathlib.Path(commands.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    shared = {"options", "packed", "sampled_run"}
    assert files - shared == {name.replace("-", "_") for name in COMMANDS}


def test_help_imports_nothing_large():
    done = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, check=True
    )  # fmt: skip
    found = json.loads(done.stdout)
    heavy = ("jax", "numpy", "flax", "orbax", "grain", "tensorflow", "torch", "pydantic")
    for words, modules in found:
        assert [name for name in heavy if name in modules] == [], words
    # the first has imported no other command
    ours = {name for name in found[0][1] if name.startswith("repae_jax.commands.")}
    assert ours == {"repae_jax.commands.inspect"}


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["sample", "--workdir", "run", "--guidance", "2"])
    assert exit_.value.code == 2
    assert "--guidance" in capsys.readouterr().err


def test_wrong_arguments_answer_within_three_seconds(tmp_path):
    words = ["train", "--config", TINY, "--config.backbone.encoder_depth=9", "--workdir", "run"]

    def answer():
        done = subprocess.run(
            [sys.executable, "-m", "repae_jax", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "JAX_PLATFORMS": "nonsense"},  # found before a device is used
        )  # fmt: skip
        assert done.returncode == 2
        assert "encoder_depth is 9" in done.stderr

    def import_what_it_needs():
        subprocess.run([sys.executable, "-c", "import jax, flax.linen"], check=True)

    # On a slow or busy machine the imports that it cannot do without take longer as well.
    tries = ((_seconds_of(answer), _seconds_of(import_what_it_needs)) for _ in range(3))
    assert any(spent < max(3.0, 3 * needed) for spent, needed in tries)


def _seconds_of(start_process):
    """Its processor's time, or less: other tests may hold the cores meanwhile."""
    started, worked = time.perf_counter(), _children_worked()
    start_process()
    return min(time.perf_counter() - started, _children_worked() - worked)


def _children_worked():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("module", ["repae_jax", "repae_jax.training.step"])
def test_imports_stay_light(module):
    heavy = ("tensorflow", "torch", "clu", "grain", "orbax", "sklearn", "matplotlib", "PIL")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "told"),
    [("pretain-teacher", "did you mean pretrain-teacher?"), ("x", "--help lists the commands")],
)
def test_an_unknown_command_is_named(command, told, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--quiet"])
    assert exit_.value.code == 2
    assert f"there is no command '{command}'; {told}" in capsys.readouterr().err
