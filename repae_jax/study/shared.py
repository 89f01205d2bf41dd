"""The shared parts of a study's runs, made once in its folder: images, text encoders, teachers,
the judge.

`study.json` records how they were made, so that another study's parts are never used for this one.
"""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.needs import check_nothing_missing
from repae_jax.config.storage import differences
from repae_jax.config.versions import complete_teacher
from repae_jax.data.identity import FILE, as_recorded, changes_since, write_fingerprints
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.interop.small_networks import read_accuracy
from repae_jax.interop.text_encoder import WEIGHTS
from repae_jax.study.plan import (
    DATA,
    RESULT,
    study_config,
    teacher_path,
    text_encoder_configs,
    trained_teachers,
    trains_text_encoder,
)
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import read_json

COMMON = "study.json"
JUDGE = "judge.safetensors"


def make_shared(study: ConfigDict, output: pathlib.Path, *, progress: bool = True) -> None:
    """Make the missing shared parts.

    Raises:
      UserError: see `check_shared`; or a network with which results were made is missing.
    """
    from repae_jax.data.prepare import prepare
    from repae_jax.study.judge import train_judge
    from repae_jax.training.language_model import pretrain_text_encoder
    from repae_jax.training.teacher import pretrain_teacher

    check_shared(study, output)
    if any(output.glob(f"runs/*/{RESULT}")):
        check_nothing_missing(
            f"{path} is gone, with which the results in {output} were made: put it back, or take "
            "another --output"
            for path in _made(study, output).values()
            if not path.is_file()
        )
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / COMMON, (json.dumps(_common(study), indent=1) + "\n").encode())
    config = study_config(study, output)
    for split, count in study.rendered.items():
        if count:
            prepare(
                f"{study.config.data.source}:{count}",
                output / DATA / split,
                split=split,
                resolution=config.data.resolution,
                workers=os.cpu_count() or 1,
                progress=progress,
            )
    if not is_file_there(output / FILE):
        write_fingerprints(output / FILE, _fingerprints(config))
    check_data(study, output)
    for file, of_encoder in _text_encoders(study, output).items():
        if not file.is_file():
            pretrain_text_encoder(of_encoder, progress=progress)
    for name in trained_teachers(config):
        if not teacher_path(output, name).is_file():
            pretrain_teacher(config, name, progress=progress)
    if not (output / JUDGE).is_file():
        train_judge(study, config.data, output / JUDGE, progress=progress)


def check_shared(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError if the folder holds the shared parts of another study."""
    path = output / COMMON
    if not path.is_file():
        there = [*_made(study, output).values(), output / DATA, output / "runs"]
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
    """Raise UserError if a shared network is missing."""
    check_nothing_missing(
        f"{what} ({path}) does not exist: make the shared parts of the runs by --prepare"
        for what, path in _made(study, output).items()
        if not path.is_file()
    )


def check_data(study: ConfigDict, output: pathlib.Path) -> None:
    """Raise UserError if the images have changed since the study began."""
    told = changes_since(output / FILE, _fingerprints(study_config(study, output)))
    if told:
        lines = "; ".join(f"{split}: {line}" for split, line in told)
        raise UserError(
            f"{output}: the data have changed since the study began ({lines}): put them back, or "
            "take another --output"
        )


def _fingerprints(config):
    """The fingerprints of both splits, in their recorded form."""
    found = {split: open_source(config.data, split) for split in ("train", "heldout")}
    return as_recorded({split: source.fingerprint() for split, source in found.items()})


def accuracies(study: ConfigDict, output: pathlib.Path) -> dict[str, float]:
    """The held-out accuracy, in [0, 1], of the judge and of each trained teacher, by name."""
    return {name: read_accuracy(path) for name, path in _networks(study, output).items()}


def _networks(study, output):
    """Title in reports -> file, for the networks that the study trains."""
    names = trained_teachers(study.config)
    teachers = {f"the teacher {name}": teacher_path(output, name) for name in names}
    return {**teachers, "the judge": output / JUDGE}


def _text_encoders(study, output):
    """File -> the configuration that trains it, for the text encoders that the study trains."""
    configs = text_encoder_configs(study, output)
    return {pathlib.Path(folder) / WEIGHTS: config for folder, config in configs.items()}


def _made(study, output):
    """Title -> file, for all networks that the study trains before its runs."""
    encoders = {
        f"the text encoder {file.parent.name}": file for file in _text_encoders(study, output)
    }
    return encoders | _networks(study, output)


def _present(stored):
    """Upgrade the content of an earlier version's file to the current names."""
    config = stored.get("config")
    teachers = config.get("teachers") if isinstance(config, dict) else None
    if not isinstance(teachers, dict):
        return stored
    entries = {name: complete_teacher(entry) for name, entry in teachers.items()}
    return {**stored, "config": {**config, "teachers": entries}}


def _common(study) -> dict[str, Any]:
    """The settings that all figures depend on, besides the runs' own, without file locations."""
    config = study.config.copy_and_resolve_references()
    for name in trained_teachers(config):
        config.teachers[name].weights = ""
    data = config.data.to_dict()
    for key in ("path", "workers", "accept"):
        del data[key]
    shared = {"data": data, "teachers": config.teachers.to_dict()}
    if trains_text_encoder(config):
        config.text_encoder.weights = ""
        shared["text_encoder"] = config.text_encoder.to_dict()
    return {
        "config": shared,
        "rendered": study.rendered.to_dict(),
        "judge": study.judge.to_dict(),
        "measures": study.measures.to_dict(),
    }
