"""The page of a run in training: its sample grids, the newest first."""

import pathlib

from repae_jax.evaluation.report import Section, write_report

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
    of_steps = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdecimal()}
    grids = [of_steps[step] for step in sorted(of_steps, reverse=True)]
    shown, room = grids[:1], _EARLIER_BYTES
    for path in grids[1:]:
        room -= path.stat().st_size
        if room < 0:
            break
        shown.append(path)
    sections = [
        Section(f"Step {int(path.stem)} of {steps}", text if path is shown[0] else "", path)
        for path in shown
    ]
    return write_report(page, title=title, sections=sections, refresh=30 if renewed else 0)
