"""The data that a run reads, which must stay the same from start to start.

The work directory keeps the fingerprint of each split (see `data.identity`) in data.json.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.identity import (
    FILE,
    Fingerprint,
    as_recorded,
    changes_since,
    read_fingerprints,
    write_fingerprints,
)
from repae_jax.data.source import Source
from repae_jax.data.sources import check_classes, open_source
from repae_jax.errors import UserError
from repae_jax.parallel.multihost import Processes
from repae_jax.utils.sealed import digest

# Changes of cached latents that `config.data.accept` cannot accept: the run's own frozen networks.
_FIXED = re.compile(r"made\.(vae|teachers|latent_shape|text): ")


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """The splits that a run trains on and is measured with.

    Attributes:
      train: the training split.
      heldout: the held-out split; None if no measure needs it.
      fingerprints: split -> fingerprint, as parsed from JSON.
    """

    train: Source
    heldout: Source | None
    fingerprints: Mapping[str, Fingerprint]


def open_data(
    config: ConfigDict, workdir: pathlib.Path, *, bad_images: str | pathlib.Path = ""
) -> RunData:
    """Open the splits that a run reads, without writing to the work directory.

    Args:
      config: the run's configuration.
      workdir: the work directory, which need not exist.
      bad_images: a file that lists skipped training images.

    Raises:
      UserError: a split cannot be opened, or has changed since the run began.
    """
    train = open_source(config.data, "train", bad_images=bad_images, any_classes=True)
    heldout = _open_heldout(config)
    splits = {"train": train} | ({"heldout": heldout} if heldout is not None else {})
    found = {name: source.fingerprint() for name, source in splits.items()}
    data = RunData(train, heldout, as_recorded(found))
    # Before the check of classes: a new or missing class is a change of the data, and the
    # configuration is right.
    _check(config, workdir, data)
    for source in splits.values():
        check_classes(source, config.data.num_classes)
    return data


def agree(data: RunData, processes: Processes) -> None:
    """Check that all processes of a job read the same data; all make the same call.

    Raises:
      UserError: this process reads other data than the first.
    """
    own = np.frombuffer(bytes.fromhex(digest(data.fingerprints)), np.uint8)
    same = np.array_equal(processes.from_first(own), own)
    with processes.together():
        if not same:
            raise UserError(
                f"{data.train.name}, {len(data.train)} images here, is not what the first process "
                "reads: give all processes the same data"
            )


def record(config: ConfigDict, workdir: pathlib.Path, data: RunData) -> str:
    """Write the data's fingerprints to the work directory; returns a message, or "".

    Raises:
      UserError: the data differ from the recorded ones, or the file cannot be written.
    """
    told, before = _check(config, workdir, data), read_fingerprints(workdir / FILE)
    write_fingerprints(workdir / FILE, {**(before or {}), **data.fingerprints})
    if told:
        return f"accepted changed data: {'; '.join(told)}"
    if before is None and (workdir / "checkpoints").is_dir():
        return f"{workdir / FILE} is new: the run began without it, and now requires these data"
    return ""


def _open_heldout(config):
    measured = config.evaluation
    if not (measured.every and measured.cknna_images):
        return None
    try:
        return open_source(config.data, "heldout", any_classes=True)
    except UserError as error:
        raise UserError(
            f"{error}; or set --config.evaluation.cknna_images=0: CKNNA takes held-out images"
        ) from error


def _check(config, workdir, data) -> list[str]:
    """List the changes of the data; raises UserError unless the configuration accepts them."""
    told = changes_since(workdir / FILE, data.fingerprints)
    lines = [f"{split}: {line}" for split, line in told]
    fixed = [line for split, line in told if split == "train" and _FIXED.match(line)]
    if fixed:
        raise UserError(
            f"{workdir}: the latents no longer come from the run's own networks "
            f"({'; '.join(fixed)}): name the cache that the run began with, or encode it again"
        )
    if not lines:
        return []
    changed = f"{workdir}: the data have changed since the run began ({'; '.join(lines)})"
    wanted = config.data.num_classes
    for source in (data.train, data.heldout):
        if source is not None and wanted not in (None, source.num_classes):
            raise UserError(
                f"{changed}: put them back, or begin a new run, in another --workdir; this one's "
                f"model is of {wanted} classes, and {source.name} has {source.num_classes}, which "
                f"takes --config.data.num_classes={source.num_classes}"
            )
    accept, given = digest(data.fingerprints)[:12], config.data.accept
    if given != accept:
        stale = f" (config.data.accept is {given!r}, which accepts other data)" if given else ""
        raise UserError(
            f"{changed}{stale}: put them back, or continue with these data, their labels and their "
            f"order, by --config.data.accept={accept}"
        )
    return lines
