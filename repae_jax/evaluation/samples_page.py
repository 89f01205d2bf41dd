"""The page of a run in training: its sample grids, the newest first."""

import pathlib

from repae_jax.evaluation.report import Section, write_report
from repae_jax.runs.going_back import sample_grids

_EARLIER_BYTES = 8 * 2**20  # of the earlier grids together


def write_samples_page(
    folder: pathlib.Path,
    page: pathlib.Path,
    *,
    title: str,
    steps: int,
    text: str,
    renewed: bool = False,
) -> pathlib.Path:
    """Write the newest sample grid, and earlier ones while they take less than 8 MiB together.

    Args:
      folder: the grids, STEP.png each.
      page: the HTML file to write or replace.
      title: the page's heading.
      steps: the steps of the whole training.
      text: a sentence on how the samples are drawn.
      renewed: whether a browser loads the page again every half minute.

    Returns:
      `page`.

    Raises:
      UserError: the file cannot be written.
    """
    newest, *earlier = reversed(sample_grids(folder).items())
    shown, room = [newest], _EARLIER_BYTES
    for step, path in earlier:
        room -= path.stat().st_size
        if room < 0:
            break
        shown.append((step, path))
    sections = [
        Section(f"Step {step} of {steps}", text if path is newest[1] else "", path)
        for step, path in shown
    ]
    return write_report(page, title=title, sections=sections, refresh=30 if renewed else 0)
