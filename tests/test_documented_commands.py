"""Every command and example of the documents is run, or checked, or marked with why it is not.

`tests/test_readme.py` runs README's commands that need nothing but digits. Here the words of every
command of ours are parsed, its configuration is read, and its keys are set; examples in Python are
run. `<!-- not run: REASON -->` before a block says why it is neither.
"""

import contextlib
import io
import pathlib
import re
import shlex

import pytest

from repae_jax import cli
from repae_jax.config import base, imagenet256, teacher
from repae_jax.config.overrides import PREFIX, apply_overrides, read_config
from repae_jax.config.validate import validate

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>\S[^>]*) -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
OURS = "python -m repae_jax "
SHORT = "repae "  # the installed command
HERE_DOCUMENT = re.compile(r" <<'END'\n.*?^END$", re.MULTILINE | re.DOTALL)
COPIES = {"configs/photos.py": "configs/imagenet256_repae_sdvae.py"}  # docs/training.md makes it
# The beginning of a line of a shell that is not ours -> why no test runs it, or which does.
SHELL = {
    "bash launch/quickstart.sh": "takes minutes; tests/test_readme.py runs its steps, shortened",
    "bash launch/test.sh": "continuous integration is this command",
    "bash launch/docs.sh": "tests/test_site.py builds the site",
    "bash launch/matrix.sh": "takes hours; tests/launch/test_matrix.py runs it with stubs",
    "python -": "tests/test_readme.py runs it",
    "python -m pytest ": "needs checkouts of the originals; its files are looked for here",
    "python benchmarks/": "takes long; its file is looked for here",
    "python -m venv ": "needs a network",
    "pip install ": "needs a network",
    ".venv-test/bin/pip install ": "needs a network",
    "git clone ": "needs a network",
    "tensorboard ": "serves until it is stopped",
    "cp ": "a copy", "mv ": "a move", "rm ": "a removal",
    "for ": "a loop", "done": "its end",
}  # fmt: skip


def blocks(path, *languages):
    """(reason or None, text) of each block of a document in one of these languages."""
    for match in BLOCK.finditer(path.read_text()):
        if match["language"] in languages:
            yield match["why"], match["body"]


def lines(text):
    """The commands of a block, each in one line, without comments and variables before it."""
    for line in HERE_DOCUMENT.sub("", text).replace("\\\n", " ").splitlines():
        if line.startswith(SHORT):
            line = OURS + line.removeprefix(SHORT)
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield shlex.join(words) if line.strip().startswith(OURS) else " ".join(words)


def commands(path):
    """The commands of ours that a document shows, in blocks and within lines."""
    for why, body in blocks(path, "bash", "sh", "console"):
        if why is None:
            yield from (line for line in lines(body) if line.startswith(OURS))
    text = BLOCK.sub("", path.read_text())
    yield from (" ".join(found.split()) for found in re.findall(rf"`({OURS}[^`]+)`", text))


def check(command):
    """Fail for an option, a key or a file of a command that does not exist."""
    words = shlex.split(command)[3:]
    parser = cli.make_parser(words[:1])._subparsers._group_actions[0].choices[words[0]]
    if "..." in words or len(words) == 1:  # left to the reader: the options alone are known
        options, config = parser._option_string_actions, ""
        named = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert [n for n in named if n not in options and not n.startswith(PREFIX)] == []
        overrides = [word for word in words if word.startswith(PREFIX)]
    else:
        options = cli._parse(words)
        overrides = options.overrides
        config = getattr(options, "config", None) or getattr(options, "file", None) or ""
    if config:
        file, _, recipe = str(config).partition(":")
        path = ROOT / COPIES.get(file, file)
        file = path if path.exists() else file  # else the name of a packaged configuration
        read = read_config(f"{file}:{recipe}" if recipe else str(file), overrides)
        if words[0] == "train":
            validate(read)
    elif overrides:
        default = imagenet256()
        for name in re.findall(r"--config\.teachers\.(\w+)\.", command):
            default.teachers[name] = teacher("dinov2-b")
        apply_overrides(default, overrides)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_line_is_run_or_has_its_reason(path):
    for why, body in blocks(path, "bash", "sh", "console"):
        for line in lines(body) if why is None else ():
            if line.startswith(OURS):
                continue
            assert any(line.startswith(start) for start in SHELL), line
            for word in line.split():
                if re.match(r"(tests|benchmarks|configs|launch)/", word):
                    assert (ROOT / COPIES.get(word, word)).exists(), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_of_ours_parses_and_its_keys_exist(path, capsys):
    for command in commands(path):
        try:
            check(command)
        except (SystemExit, Exception) as error:
            pytest.fail(f"{path.name}: {command}: {error} {capsys.readouterr().err}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_example_in_python_runs(path, monkeypatch):
    if path.name == "README.md":
        return  # tests/test_readme.py runs it
    monkeypatch.chdir(ROOT)
    for why, body in blocks(path, "python"):
        given = {"config": base(), "epoch": 1251}
        exec("from repae_jax.config import *", given)
        if why is None:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(body, given)
                if "get_config" in given:
                    validate(given["get_config"]("vae"))


@pytest.mark.parametrize(
    "wrong",
    [
        "train --config configs/digits.py --workdir x --config.run.no_key=1",
        "train --config configs/digits.py --workdir x --no-option",
        "train --config configs/none.py --workdir x",
        "train --config configs/digits.py:none --workdir x",
        "train ... --no-option",
        "train ... --config.run.no_key=1",
        "sample --labels 3",
    ],
)
def test_a_stale_command_is_found(wrong, capsys):
    with pytest.raises((SystemExit, Exception)):
        check(OURS + wrong)


def test_a_block_without_its_reason_is_no_mark(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: -->\n```bash\nfly\n```\n\n<!-- not run: a bird -->\n```bash\nx\n```\n"
    )
    assert list(blocks(page, "bash")) == [(None, "fly\n"), ("a bird", "x\n")]
