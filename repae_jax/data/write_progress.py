"""The folder of a packed data set during writing: its description, and its lock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from repae_jax.data.identity import changes
from repae_jax.data.manifest import (
    BEGUN,
    MANIFEST,
    SHARD_NAME,
    read_manifest,
    write_json,
)
from repae_jax.errors import UserError
from repae_jax.utils.atomic_files import entries, remove_temporaries
from repae_jax.utils.lock import Lock, writing_in
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import read_json

# The names that a run can leave in the folder and in progress/. (Older versions had their lock in
# progress/.)
_OWN_NAME = re.compile(rf"{SHARD_NAME}|manifest\.json|progress")
_OWN_PROGRESS_NAME = re.compile(r"made\.json|lock|shard-\d{5,}\.json")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a packed data set.

    Attributes:
      folder: the data set's folder.
      count: the number of elements of the source.
      per_shard: elements per shard.
      begun: the manifest's entries that are known before writing, as JSON returns them.
    """

    folder: pathlib.Path
    count: int
    per_shard: int
    begun: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return math.ceil(self.count / self.per_shard)

    @property
    def made(self) -> pathlib.Path:
        return self.folder / BEGUN

    @property
    def progress(self) -> pathlib.Path:
        return self.made.parent

    def shard(self, number: int) -> pathlib.Path:
        return self.folder / f"shard-{number:05d}-of-{self.shards:05d}.array_record"

    def sidecar(self, number: int) -> pathlib.Path:
        return self.progress / f"shard-{number:05d}.json"

    def indexes(self, number: int) -> range:
        start = number * self.per_shard
        return range(start, min(start + self.per_shard, self.count))


def check_entries(plan: Plan) -> None:
    """Raise UserError if the folder holds an entry that no earlier run can have left there."""
    names = [name for name in entries(plan.folder) if name[0] != "."]
    foreign = [name for name in names if not _OWN_NAME.fullmatch(name)]
    foreign += [
        f"{plan.progress.name}/{name}"
        for name in entries(plan.progress)
        if name[0] != "." and not _OWN_PROGRESS_NAME.fullmatch(name)
    ]
    if not plan.made.exists() and MANIFEST not in names:  # no run has begun here
        foreign += [name for name in names if name != plan.progress.name]
    if foreign:
        raise UserError(
            f"{plan.folder} holds something else already ({min(foreign)}); choose a new or empty "
            "folder"
        )


@contextlib.contextmanager
def claim(plan: Plan) -> Iterator[Lock]:
    """Lock the folder during the block; temporary files are removed before and after it.

    progress/ is removed as well if the data set is finished, or no run has begun.

    Raises:
      UserError: another process holds the folder, or it cannot be written.
    """
    with writing_in(plan.folder) as lock:
        _remove_temporaries(plan)
        try:
            yield lock
        finally:
            if not lock.lost:
                _remove_temporaries(plan)
                if (plan.folder / MANIFEST).exists() or not plan.made.exists():
                    _remove_progress(plan)


def _remove_temporaries(plan):
    remove_temporaries(plan.folder, _OWN_NAME.fullmatch)
    remove_temporaries(plan.progress, _OWN_PROGRESS_NAME.fullmatch)


def _remove_progress(plan):
    for name in filter(_OWN_PROGRESS_NAME.fullmatch, entries(plan.progress)):
        (plan.progress / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it does not exist
        plan.progress.rmdir()


def begin(plan: Plan) -> None:
    """Write the description of the data set, unless a run has begun or finished one there.

    Raises:
      UserError: the description cannot be written.
    """
    if not is_file_there(plan.folder / MANIFEST) and not is_file_there(plan.made):
        write_json(plan.made, plan.begun)


def check_begun(plan: Plan) -> dict[str, Any] | None:
    """Check that the data set in the folder, finished or not, is the planned one.

    Returns:
      The manifest of a finished data set; None for an unfinished one.

    Raises:
      UserError: the folder holds another data set, or its description is damaged.
    """
    manifest = plan.folder / MANIFEST
    if manifest.exists():
        finished = read_manifest(plan.folder)
        _check_same(plan, finished, manifest)
        return finished
    if not plan.made.exists():
        raise UserError(
            f"{plan.folder}: another process began there, but this one sees nothing: give a "
            "folder on a disk that all of them share"
        )
    _check_same(plan, read_json(plan.made), plan.made)
    return None


def _check_same(plan, there, path):
    if not isinstance(there, dict) or not isinstance(there.get("made"), dict):
        raise UserError(f"{path}: damaged; delete {plan.folder} and begin anew")
    theirs = {**{key: there.get(key) for key in plan.begun}, **there["made"]}
    ours = {**plan.begun, **plan.begun["made"]}
    before, now = theirs.pop("data", None), ours.pop("data", None)
    try:
        lines = changes(before, now) if before and now else []  # older versions have names alone
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: damaged; delete {plan.folder} and begin anew") from error
    if not lines and theirs.get("names_sha256") != ours.get("names_sha256"):
        lines = ["files have been added, removed or renamed, or it is another source"]
    if lines:
        raise UserError(
            f"{plan.folder} was begun with other images: {'; '.join(lines)}; put them back, delete "
            f"the folder {plan.folder} and run the command again, or choose another folder"
        )
    check_same(plan.folder, theirs, ours)


def check_same(what: pathlib.Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise UserError if `what` was begun with other entries; "made" itself is not compared."""
    differing = [
        f"{key} = {theirs.get(key)!r}, not {ours.get(key)!r}"
        for key in {**ours, **theirs}
        if key != "made" and theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise UserError(
            f"{what} was begun with {'; '.join(differing)}: repeat that, delete {what}, or choose "
            f"another {'folder' if what.is_dir() else 'name'}"
        )
