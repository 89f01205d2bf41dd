"""The notebooks: what is stored in them is whole, and each runs in a fresh kernel."""

import base64
import io
import json
import pathlib
import re
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What a notebook must say: an expression with one number, and its least and largest value.
# The digits' mean image comes to 12.5 dB, means over 4 x 4 pixels to 19.5, a shift by one to 20.
SAID = {
    "pretrained_vae": {
        r"PSNR of held-out digits: (\S+) dB": (25.0, 60.0),
        r"normalised +mean +(\S+)": (-0.1, 0.1),
        r"normalised .*standard deviation +(\S+)": (0.9, 1.1),
        r"and back, within (\S+)": (0.0, 1e-4),
    },
    "sampling": {
        r"euler: order (\S+),": (0.8, 1.2),
        r"heun: order (\S+),": (1.25, 2.5),
        r"real held-out digits read rightly: (\S+) %": (97.0, 100.0),
        r"guidance none +read as asked +(\S+) %": (70.0, 97.0),  # by chance: 10
        r"guidance 2 +read as asked +(\S+) %": (97.0, 100.0),
        r"ODE: images from one start differ by (\S+)": (0.0, 1e-3),
        r"SDE: images from one start differ by (\S+)": (0.1, 0.6),  # digits of a class: about 0.3
        r"made alone: at most (\S+) of 255": (0, 1),
    },
    "text_to_image": {
        r"2 blocks: perplexity (\S+)": (2.0, 4.0),
        r"no block: perplexity (\S+)": (5.0, 12.0),
        r"2 blocks, whitened[^\n]*\s+'square': (\S+) apart": (0.3, 1.4),
        r"no block, whitened[^\n]*\s+'square': (\S+) apart": (0.0, 1e-3),
        r"renders +both colors +\S+ % +each on its side +(\S+) %": (100.0, 100.0),
        r"2 blocks +both colors +\S+ % +each on its side +(\S+) %": (85.0, 100.0),
        # the same images for swapped colors: at most every second one is as asked
        r"no block +both colors +\S+ % +each on its side +(\S+) %": (20.0, 50.0),
        r"no block: the rows differ by at most (\S+) of 255": (0, 2),
        r"guidance 1 +both colors +\S+ % +each on its side +(\S+) %": (60.0, 100.0),
        r"no negative prompt\s+of 48 squares: .*red in (\S+) %": (5.0, 75.0),
        r"negative: a red square .*\s+of 48 squares: .*red in (\S+) %": (0.0, 4.5),
    },
}
# the same where a notebook says it at all: diffusers may be missing, or at odds with torchvision
SAID_PERHAPS = {
    "pretrained_vae": {
        r"latents differ by at most (\S+),": (0.0, 1e-4),
        r"images in \[-1, 1\] by at most (\S+)": (0.0, 1e-4),
    }
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(notebook):
    streams = (o.text for o in outputs(notebook) if o.output_type == "stream")
    values = (o.data.get("text/plain", "") for o in outputs(notebook) if "data" in o)
    return "\n".join([*streams, *values])


def pictures(notebook):
    """The PNG outputs as arrays (H, W, 3)."""
    stored = (o.data["image/png"] for o in outputs(notebook) if "image/png" in o.get("data", {}))
    opened = (Image.open(io.BytesIO(base64.b64decode(png))) for png in stored)
    return [np.asarray(picture.convert("RGB")) for picture in opened]


def check_what_is_said(name, notebook):
    text = text_of(notebook)
    for said in (SAID, SAID_PERHAPS):
        for expression, (low, high) in said.get(name, {}).items():
            match = re.search(expression, text)
            if match or said is SAID:
                assert match, expression
                assert low <= float(match[1]) <= high, match[0]


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel of this Python that knows the project, and nothing of the user's."""
    folder = tmp_path / "kernels" / "tests"
    folder.mkdir(parents=True)
    launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": launcher, "display_name": "tests", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # the notebook trains: level 0, as for all other tests, would take longer than it saves
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
    return "tests"


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= set(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_whole(path):
    notebook = read(path)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))  # run once, from top to bottom
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
    assert pictures(notebook)
    assert not re.search(r"(^|[\s'\"(])(/|~/|[A-Z]:\\)\w", text_of(notebook))  # absolute paths
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata]  # times of day
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    check_what_is_said(path.stem, notebook)


@pytest.mark.slow  # a process of its own, which compiles, trains and imports diffusers
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_a_fresh_kernel(path, kernel):
    stored = read(path)
    before = sorted(path.parent.iterdir())
    client = nbclient.NotebookClient(
        read(path),
        kernel_name=kernel,
        timeout=600,
        resources={"metadata": {"path": str(path.parent)}},  # as Jupyter does
    )
    notebook = client.execute()  # raises with the cell and its traceback where one fails
    assert sorted(path.parent.iterdir()) == before
    shown = pictures(notebook)
    assert [picture.shape for picture in shown] == [p.shape for p in pictures(stored)]
    assert all(picture.std() > 10 for picture in shown)
    check_what_is_said(path.stem, notebook)
