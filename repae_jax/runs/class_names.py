"""The names of a run's classes."""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from repae_jax.data import scenes
from repae_jax.data.identity import FILE, read_fingerprints


def recorded_class_names(workdir: pathlib.Path, config: ConfigDict) -> tuple[str, ...] | None:
    """The names in the fingerprint of the run's data; None unless each class has one.

    Raises:
      UserError: the fingerprint is damaged.
    """
    if config.data.source == "scenes":
        return one_for_each(scenes.CLASSES, config)
    classes = (read_fingerprints(workdir / FILE) or {}).get("train", {}).get("classes")
    names = [entry if isinstance(entry, str) else entry[0] for entry in classes or ()]
    return one_for_each(names, config)


def one_for_each(names: Sequence[str] | None, config: ConfigDict) -> tuple[str, ...] | None:
    """The names, if there is one for each class of the configuration; else None."""
    return tuple(names) if names and len(names) == config.data.num_classes else None
