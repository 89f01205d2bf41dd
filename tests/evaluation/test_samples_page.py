"""The page of a run in training."""

import re

import numpy as np
import pytest

from repae_jax.evaluation import samples_page
from repae_jax.evaluation.samples_page import write_samples_page
from repae_jax.utils.figures import save_png


@pytest.fixture
def write(tmp_path):
    """Saves grids of these steps, and returns the steps that the page shows."""

    def write(*steps, renewed=False):
        for step in steps:
            save_png(tmp_path / "samples" / f"{step:07d}.png", np.full((8, 8, 3), 9, np.uint8))
        page = tmp_path / "samples.html"
        made = write_samples_page(
            tmp_path / "samples", page, title="a <run>", steps=9, text="One row a class.",
            renewed=renewed,
        )  # fmt: skip
        assert made == page
        text = page.read_text()
        assert "a &lt;run&gt;" in text
        assert text.count("One row a class.") == 1
        shown = re.findall(r"<h2>Step (\d+) of 9</h2>", text)
        assert text.count("<img") == len(shown)
        assert ('http-equiv="refresh"' in text) == renewed
        return [int(step) for step in shown]

    (tmp_path / "samples").mkdir()
    return write


def test_the_newest_grid_comes_first(write, tmp_path):
    (tmp_path / "samples" / "mine.png").touch()
    assert write(400, renewed=True) == [400]
    assert write(1200, 800, 10_000_000) == [10_000_000, 1200, 800, 400]


def test_earlier_grids_are_left_out_when_the_page_grows(write, monkeypatch, tmp_path):
    write(1)
    size = (tmp_path / "samples" / "0000001.png").stat().st_size
    monkeypatch.setattr(samples_page, "_EARLIER_BYTES", 2 * size)
    assert write(2, 3, 4) == [4, 3, 2]
    monkeypatch.setattr(samples_page, "_EARLIER_BYTES", 0)
    assert write(5) == [5]
