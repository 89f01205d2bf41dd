"""What all runs of a study share, made once in its folder: rendered scenes, teachers, the judge.

`study.json` says how, so that what another study left there is never taken for this one's.
"""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.defaults import differences
from repae_jax.config.needs import check_nothing_missing
from repae_jax.config.versions import complete_teacher
from repae_jax.data.identity import FILE, as_recorded, changes_since, write_fingerprints
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.study.plan import DATA, RESULT, own_teachers, placed_config, teacher_path
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import read_json

COMMON = "study.json"
JUDGE = "judge.safetensors"


def make_shared(study: ConfigDict, output: pathlib.Path, *, progress: bool = True) -> None:
    """Make what is not there yet.

    Raises:
      UserError: what `check_shared` raises, or a network is gone that results were made with.
    """
    from repae_jax.data.prepare import prepare
    from repae_jax.study.judge import train_judge
    from repae_jax.training.teacher import pretrain_teacher

    check_shared(study, output)
    if any(output.glob(f"runs/*/{RESULT}")):
        check_nothing_missing(
            f"{path} is gone, with which the results in {output} were made: put it back, or take "
            "another --output"
            for path in _networks(study, output).values()
            if not path.is_file()
        )
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / COMMON, (json.dumps(_common(study), indent=1) + "\n").encode())
    config = placed_config(study, output)
    for split, count in study.rendered.items():
        if count:
            prepare(
                f"scenes:{count}",
                output / DATA / split,
                split=split,
                resolution=config.data.resolution,
                workers=os.cpu_count() or 1,
                progress=progress,
            )
    if not is_file_there(output / FILE):
        write_fingerprints(output / FILE, _fingerprints(config))
    check_data(study, output)
    for name in own_teachers(config):
        if not teacher_path(output, name).is_file():
            pretrain_teacher(config, name, progress=progress)
    if not (output / JUDGE).is_file():
        train_judge(study, config.data, output / JUDGE, progress=progress)


def check_shared(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError where the folder holds what is shared by another study's runs."""
    path = output / COMMON
    if not path.is_file():
        there = [*_networks(study, output).values(), output / DATA, output / "runs"]
        for found in there:
            if found.exists():
                raise UserError(
                    f"{output} holds {found.name}, but no {COMMON} to say how it was made: take "
                    "another --output"
                )
        return
    told = differences(_present(read_json(path, dict[str, Any])), _common(study))
    if told:
        raise UserError(
            f"{output} is of another study: {'; '.join(told[:3])}; take another --output"
        )


def check_made(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError unless all that runs share is there."""
    check_nothing_missing(
        f"{what} ({path}) is not there: make what the runs share by --prepare"
        for what, path in _networks(study, output).items()
        if not path.is_file()
    )


def check_data(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError where the images are not those that the study began with."""
    told = changes_since(output / FILE, _fingerprints(placed_config(study, output)))
    if told:
        lines = "; ".join(f"{split}: {line}" for split, line in told)
        raise UserError(
            f"{output}: the data have changed since the study began ({lines}): put them back, or "
            "take another --output"
        )


def _fingerprints(config):
    """Of both splits, as they are noted."""
    found = {split: open_source(config.data, split) for split in ("train", "heldout")}
    return as_recorded({split: source.fingerprint() for split, source in found.items()})


def accuracies(study: ConfigDict, output: pathlib.Path) -> dict[str, float]:
    """Which share of the held-out images the judge and the teachers classify correctly."""
    from repae_jax.study.judge import noted_accuracy

    return {name: noted_accuracy(path) for name, path in _networks(study, output).items()}


def _networks(study, output):
    """The files of the networks that are trained here, by what readers call them."""
    names = own_teachers(study.config)
    teachers = {f"the teacher {name}": teacher_path(output, name) for name in names}
    return {**teachers, "the judge": output / JUDGE}


def _present(stored):
    """What an earlier version wrote, in today's names."""
    config = stored.get("config")
    teachers = config.get("teachers") if isinstance(config, dict) else None
    if not isinstance(teachers, dict):
        return stored
    entries = {name: complete_teacher(entry) for name, entry in teachers.items()}
    return {**stored, "config": {**config, "teachers": entries}}


def _common(study) -> dict[str, Any]:
    """On what all figures depend beside a run's own configuration, but for where files lie."""
    config = study.config.copy_and_resolve_references()
    for name in own_teachers(config):
        config.teachers[name].weights = ""
    data = config.data.to_dict()
    for key in ("path", "workers", "accept"):
        del data[key]
    return {
        "config": {"data": data, "teachers": config.teachers.to_dict()},
        "rendered": study.rendered.to_dict(),
        "judge": study.judge.to_dict(),
        "measures": study.measures.to_dict(),
    }
