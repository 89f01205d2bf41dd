"""Continuing a run from an earlier checkpoint, and the command that does it."""

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

ASIDE = "aside-{}"  # a folder in the run's, which is a work directory as well
SAMPLES = "samples"
# What a work directory is of beside its checkpoints; those that a run has not are left out.
DESCRIBED_BY = (
    work_directory.HISTORY, DATA, ORIGIN, f"{FOLDER}/{RECORD}", work_directory.CONFIG
)  # fmt: skip
PUBLISHED_RATE = 1e-4  # the learning rate of the published runs


def check_step(workdir: pathlib.Path, step: int, part: int = 0, parts: int = 1) -> None:
    """See that the run in `workdir` can be continued from `step`.

    Args:
      workdir: the run's folder.
      step: 0 for its beginning.
      part: of several processes that each compare a share of the checkpoint's files with their
        checksums, which this is.
      parts: how many there are.

    Raises:
      UserError: there is no such checkpoint, or it is damaged; names those that there are.
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
    """What is wrong with a checkpoint; "" if nothing shows."""
    try:
        if step:
            check_checkpoint(workdir / FOLDER / str(step), part, parts)
    except UserError as error:
        return str(error)
    return ""


def has_gone_back(workdir: pathlib.Path, step: int) -> bool:
    """Whether the last thing that happened to the run's configuration was going back to `step`.

    The command that did it is then run again, after a signal, and means to continue.
    """
    return work_directory.last_of_history(workdir).get("from_step") == step


def set_aside(workdir: pathlib.Path, step: int) -> str:
    """Move what the run saved after `step` into a work directory within its own.

    Checkpoints and the pictures that were drawn on the way move; what describes the run is copied.

    Returns:
      The name of that; "" if there was nothing.
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
    for name in reversed(later):  # whatever ends this between two, the newest is gone first
        (workdir / FOLDER / str(name)).rename(aside / FOLDER / str(name))
    for picture in sorted((workdir / SAMPLES).glob("*.png")):
        if (as_whole(picture.stem.lstrip("0")) or 0) > step:
            (aside / SAMPLES).mkdir(exist_ok=True)
            picture.rename(aside / SAMPLES / picture.name)
    return aside.name


def way_back(workdir: pathlib.Path, config: ConfigDict, step: int | None, processes: int) -> str:
    """The command that continues a run from `step`, or from its beginning, more slowly.

    Learning rates become the published one, or a tenth of their own where that is less.
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
    """Whether the configuration tells the run's state at step 0: one that was imported has none."""
    return not os.path.lexists(workdir / ORIGIN)
