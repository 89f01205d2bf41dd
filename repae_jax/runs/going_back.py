"""Going back: continuing a run from an earlier checkpoint, and the command for it."""

import os
import pathlib
import shlex
import shutil

from ml_collections import ConfigDict

from repae_jax.data.identity import FILE as DATA
from repae_jax.errors import UserError
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.checkpoints import FOLDER, saved_steps
from repae_jax.runs.integrity import check_checkpoint
from repae_jax.runs.provenance import FILE as ORIGIN
from repae_jax.runs.retention import FILE as RECORD
from repae_jax.utils.schema import as_whole

ASIDE = "aside-{}"  # a folder inside the run's; it is a work directory itself
SAMPLES = "samples"  # in the work directory: the grids of samples drawn in training
SAMPLES_PAGE = "samples.html"  # in the work directory: the newest of them
# The files that describe a run, besides its checkpoints; files that a run lacks are skipped.
DESCRIBED_BY = (
    work_directory.HISTORY, DATA, ORIGIN, f"{FOLDER}/{RECORD}", work_directory.CONFIG
)  # fmt: skip
PUBLISHED_RATE = 1e-4  # the learning rate of the published runs


def check_step(workdir: pathlib.Path, step: int, part: int = 0, parts: int = 1) -> None:
    """Check that the run in `workdir` can be continued from `step`.

    `parts` processes can share the work: each compares its part of the checkpoint's files with
    their checksums.

    Args:
      workdir: the run's folder.
      step: the checkpoint's step; 0 is the beginning of the run.
      part: the number of this process, from 0.
      parts: the number of processes.

    Raises:
      UserError: there is no such checkpoint, or it is damaged; the error lists the intact ones.
    """
    steps = saved_steps(workdir)
    if _begins_here(workdir):
        steps = [0, *steps]
    if step not in steps:
        raise UserError(f"--from-step is {step}: {workdir} can be continued from {_named(steps)}")
    if damage := _damage(workdir, step, part, parts):
        others = [other for other in steps if other != step and not _damage(workdir, other)]
        raise UserError(
            f"--from-step is {step}: {damage}; {workdir} can be continued from {_named(others)}"
        )


def _named(steps):
    named = ("0 (the beginning)" if step == 0 else str(step) for step in steps)
    return ", ".join(named) or "no other: restore one from a copy"


def _damage(workdir, step, part=0, parts=1):
    """Describe the damage of a checkpoint; "" for an intact one."""
    try:
        if step:
            check_checkpoint(workdir / FOLDER / str(step), part, parts)
    except UserError as error:
        return str(error)
    return ""


def has_gone_back(workdir: pathlib.Path, step: int) -> bool:
    """Whether the last entry of the run's configuration history is going back to `step`.

    If so, the user has repeated the same command after a signal, and the run continues.
    """
    return work_directory.last_history_entry(workdir).get("from_step") == step


def set_aside(workdir: pathlib.Path, step: int) -> str:
    """Move the checkpoints and sample pictures after `step` into a work directory inside the run's.

    The page of samples moves as well: training writes another at its next samples. The files that
    describe the run are copied there.

    Returns:
      The new work directory's name; "" if there are no checkpoints after `step`.
    """
    later = [s for s in saved_steps(workdir) if s > step]
    if not later:
        return ""
    number = 1
    while (aside := workdir / ASIDE.format(number)).exists():
        number += 1
    (aside / FOLDER).mkdir(parents=True)
    for name in DESCRIBED_BY:
        if (workdir / name).exists():
            shutil.copy(workdir / name, aside / name)
    for name in reversed(later):  # newest first, so that an interrupted move leaves no gap
        (workdir / FOLDER / str(name)).rename(aside / FOLDER / str(name))
    for drawn_at, picture in sample_grids(workdir / SAMPLES).items():
        if drawn_at > step:
            (aside / SAMPLES).mkdir(exist_ok=True)
            picture.rename(aside / SAMPLES / picture.name)
    if (page := workdir / SAMPLES_PAGE).exists():
        page.rename(aside / SAMPLES_PAGE)
    return aside.name


def sample_grids(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The grids STEP.png of a folder, by step in ascending order; others are left out."""
    found = {as_whole(path.stem.lstrip("0") or "0"): path for path in folder.glob("*.png")}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


def recovery_command(
    workdir: pathlib.Path, config: ConfigDict, step: int | None, processes: int
) -> str:
    """The command that continues a run from an earlier step with lower learning rates, in float32.

    Learning rates become 1e-4, as published, or a tenth of their value if that is less.

    Args:
      workdir: the run's folder.
      config: the run's configuration.
      step: the step to continue from; None: the beginning, or else the first checkpoint.
      processes: number of processes of the job.
    """
    if step is None:
        steps = saved_steps(workdir)
        step = 0 if _begins_here(workdir) or not steps else steps[0]
    words = ["python", "-m", "repae_jax", "train"]
    words += ["--workdir", str(workdir), "--from-step", str(step)]
    words += ["--distributed"] if processes > 1 else []
    for name in config.train:
        rate = min(PUBLISHED_RATE, config.optimizer[name].learning_rate / 10)
        words.append(f"--config.optimizer.{name}.learning_rate={rate:g}")
    if config.dtype != "float32":
        words.append("--config.dtype=float32")
    return shlex.join(words)


def _begins_here(workdir):
    """Whether the configuration defines the state at step 0; that of an imported run is unknown."""
    return not os.path.lexists(workdir / ORIGIN)
