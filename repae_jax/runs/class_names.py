"""The names of a run's classes."""

import json
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from repae_jax.data import scenes
from repae_jax.data.identity import FILE, read_fingerprints
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import Text, read_json

IMPORTED = "class_names.json"  # in the folder of a run that was imported with names


def recorded_class_names(workdir: pathlib.Path, config: ConfigDict) -> tuple[str, ...] | None:
    """The names in the fingerprint of the run's data, or those that the run was imported with.

    None unless each class has one.

    Raises:
      UserError: the fingerprint or the file of names is damaged.
    """
    if config.data.source == "scenes":
        return one_for_each(scenes.CLASSES, config)
    classes = (read_fingerprints(workdir / FILE) or {}).get("train", {}).get("classes")
    names = [entry if isinstance(entry, str) else entry[0] for entry in classes or ()]
    if not names and (workdir / IMPORTED).is_file():
        names = read_json(workdir / IMPORTED, list[Text])
    return one_for_each(names, config)


def keep_class_names(workdir: pathlib.Path, names: Sequence[str]) -> None:
    """Keep the names that a run is imported with in its folder."""
    write_atomically(workdir / IMPORTED, (json.dumps(list(names), indent=1) + "\n").encode())


def one_for_each(names: Sequence[str] | None, config: ConfigDict) -> tuple[str, ...] | None:
    """The names, if there is one for each class of the configuration; else None."""
    return tuple(names) if names and len(names) == config.data.num_classes else None
