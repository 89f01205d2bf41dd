"""README's commands, in the environment that README makes: each works, or says what to install."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time

import numpy as np
import pytest
from bare_environment import make_bare
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
TINY = """\
import tiny

def get_config(recipe="repae"):
    config = tiny.get_config("repa" if recipe == "images" else recipe)
    config.teachers["digits"] = config.teachers.small
    config.teachers.digits.weights = "runs/digits_teacher.safetensors"
    del config.teachers["small"]
    if recipe == "images":
        config.tokenizer.weights = "runs/digits"
    return config
"""
# All in one process, which imports once; what is printed is read back as JSON.
RUN = """\
import contextlib, io, json, sys, traceback

import numpy as np

from repae_jax.cli import main

GLOBALS = {"images": np.zeros((1, 32, 32, 3), np.uint8)}
done = []
for words in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(words) if isinstance(words, list) else exec(words, GLOBALS)
        except BaseException:
            status = traceback.print_exc()
    done.append((status, printed.getvalue()))
json.dump(done, sys.stdout)
"""
SHORT = ["--count", "4", "--steps", "2"]
# A command of README (its beginning) -> words that make it short; None: it is not run here.
RUNS = {
    "pretrain-teacher --config configs/digits.py": [],
    "train --config configs/digits.py --workdir runs/digits": ["--config.run.steps=2"],
    "sample --workdir runs/digits": ["--steps", "2"],
    "sample --workdir runs/x --labels none": ["--steps", "2"],
    "report --workdir runs/digits": ["--samples", "4"],
    "inspect PATH": [],
    "convert runs/digits my-vae": [],
    "convert runs/digits exps/digits/0001200.pt": [],
    "convert runs/digits my-digits --to pipeline": [],
    "prepare ~/imagenet/train": ["--resolution", "32", "--workers", "0"],
    "encode --config configs/imagenet256_ldm_e2e_vavae.py:images": ["--batch-size", "8"],
    "generate --workdir runs/x --output samples/x.npz": SHORT,
    "generate --workdir runs/x --output samples/unconditional": SHORT,
    "generate --workdir runs/x --output samples/dogs": [*SHORT, "--labels", "2,5"],
    "evaluate-vae runs/x": [],
    "demo --workdir runs/digits": "gradio",
    # PyTorch files: the teachers', Inception's and the original's
    "convert exps/x/checkpoints/0400000.pt runs/x": "torch",
    "evaluate samples/x.npz": "torch",
    "evaluate samples/dogs": "torch",
    "evaluate runs/x": "torch",
    "evaluate-latents data/heldout": "torch",
    # other tests compile what these do
    "train --config configs/digits.py --workdir runs/small": None,
    "train --config configs/digits.py:repa": None,
    "generate --workdir runs/x --output samples/x_cfg.npz": None,
    "evaluate-alignment": None,
    "evaluate samples/coco": None,  # tests/evaluation/test_evaluate_prompts.py does
    "study": None,
    # they leave something to be filled in, or need an absent package for TPUs
    "train --workdir runs/x --config.teachers.dinov2_b.weights=FILE": None,
    "train --workdir runs/x --from-step 20000": None,  # a checkpoint of the reader's own
    "generate --distributed ...": None,
    "train ...": None,
    "train --config ...": None,
    "train --distributed ...": None,
    "compile": None,
    # tests/interop/test_dit_folder.py runs it
    "convert DiT-XL-2-256 runs/dit": None,
}


def blocks(language):
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    """The words of README's commands behind `python -m repae_jax`, in their order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    start = "python -m repae_jax "
    return [shlex.split(line, comments=True)[3:] for line in lines if line.startswith(start)]


def plan(words):
    """What to do with a command: the value of the longest entry of `RUNS` that it begins with."""
    text = " ".join(words)
    fitting = [start for start in RUNS if f"{text} ".startswith(f"{start} ")]
    assert fitting, f"README has a command that no test knows: {text}"
    return RUNS[max(fitting, key=len)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where README's commands find their files, as small as they go."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("digits", "imagenet256_ldm_e2e_vavae"):
        (folder / "configs").mkdir(exist_ok=True)
        (folder / "configs" / f"{name}.py").write_text(TINY)
    rng = np.random.default_rng(0)
    places = ("data/heldout", "data/dogs", "data/imagenet256/val")
    for place in (*places, "imagenet/train/cat", "imagenet/train/dog"):
        (folder / place).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    for name in ("exps/x/checkpoints/0400000.pt", "sdvae.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")
    weights = folder / "pretrained/inception/pt_inception-2015-12-05-6726825d.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (folder / "VIRTUAL_imagenet256_labeled.npz").write_bytes(b"statistics")
    (folder / "runs").mkdir()
    (folder / "runs" / "x").symlink_to("digits")
    (folder / "pretrained" / "REPA-E").mkdir()
    (folder / "pretrained" / "REPA-E" / "e2e-sdvae-hf").symlink_to("../../my-vae")
    return folder


@pytest.mark.slow  # trains, samples, encodes, reports: some ten programs are compiled
def test_readmes_commands_work_without_what_it_does_not_install(folder, tmp_path):
    known = {"PATH": "runs/digits", "~/imagenet/train": "imagenet/train"}
    wanted = [(words, plan(words)) for words in commands()]
    wanted = [(words, more) for words, more in wanted if more is not None]
    todo = [
        [known.get(word, word) for word in words] + (more if isinstance(more, list) else [])
        for words, more in wanted
    ]
    code = blocks("python")
    path = [str(make_bare(tmp_path)), str(ROOT), str(ROOT / "tests" / "helpers")]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([*todo, *code]), cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    for (words, more), (status, printed) in zip(wanted, results, strict=False):
        last = printed.strip().rpartition("\n")[2]
        if isinstance(more, str):
            assert (status, f"pip install {more}" in last) == (2, True), (words, printed)
        else:
            assert status == 0, (words, printed)
    for text, (_, printed) in zip(code, results[len(todo) :], strict=True):
        assert not printed, (text, printed)


# Instead of the Python that a reader has: its environments know the tests' packages, so that
# `pip install .` finds its requirements, and a setuptools that is new enough, without a network.
PYTHON = """\
#!/bin/sh
"{python}" "$@" || exit
if [ "$1 $2" = "-m venv" ]; then
  own=$(echo "$3"/lib/python*/site-packages)
  rm -rf "$own"/setuptools* "$own"/_distutils_hack "$own"/distutils-precedence.pth
  echo "{packages}" > "$own/tests.pth"
fi
exit 0
"""


@pytest.mark.slow  # makes an environment, installs the package, trains, samples
@pytest.mark.skipif(sys.platform != "linux", reason="PIL opens pictures by xdg-open on Linux")
def test_the_ten_lines_run_as_printed(folder, tmp_path):
    (block,) = (text for text in blocks("bash") if "Pipeline.from_pretrained" in text)
    assert len(block.splitlines()) == 10
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    names = [
        *ROOT.glob("requirements*.txt"),
        *(ROOT / name for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md")),
    ]
    checkout.mkdir()
    for name in names:
        shutil.copy(name, checkout)
    shutil.copytree(ROOT / "repae_jax", checkout / "repae_jax")
    shutil.copytree(folder / "configs", checkout / "configs")
    packages = sysconfig.get_path("purelib")
    part, shown = tmp_path / "part.png", tmp_path / "shown.png"
    programs.mkdir()
    for name, content in {
        "python": PYTHON.format(python=sys.executable, packages=packages),
        "xdg-open": f'#!/bin/sh\ncp "$1" "{part}" && mv "{part}" "{shown}"\n',  # PIL's viewer
    }.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=checkout, capture_output=True, text=True, check=False,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "tests" / "helpers"),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's word for "without isolation"
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for _ in range(100):
        if shown.exists():
            break
        time.sleep(0.1)
    with Image.open(shown) as picture:
        assert picture.size == (5 * 68 + 4, 68 + 4)
        assert np.asarray(picture).std() > 10
