"""Which data these are: fingerprints of sources, and what has changed between two.

A fingerprint is a small dict that JSON can hold, and the same wherever the data lie:

    source      the kind of source
    count       of images
    classes     where the source knows them, in the order of the labels: [name, images, checksum of
                their names], or names alone; None where it does not
    ...         what else tells such data from others
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from repae_jax.errors import UserError, first_line
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import checked, read_json
from repae_jax.utils.sealed import seal, unseal_if_sealed

FILE = "data.json"  # where fingerprints are noted
Fingerprint = Mapping[str, Any]
_SHOWN = 3  # changes of one kind in a message
_LONGEST = 40  # characters of a value in it
_WAY_OUT = "restore it, or remove it if the data are what they were"


def names_checksum(names: Iterable[str]) -> str:
    """SHA-256 of names in their order."""
    joined = "\0".join([*names, ""])
    return hashlib.sha256(joined.encode("utf-8", "surrogateescape")).hexdigest()


def class_table(
    names: Sequence[str], labels: np.ndarray, classes: Sequence[str]
) -> list[list[str | int]]:
    """A fingerprint's `classes`.

    Args:
      names: of the images, in their order.
      labels: (N,) theirs.
      classes: the classes' names.
    """
    ordered = list(map(names.__getitem__, np.argsort(labels, kind="stable").tolist()))
    stops = np.cumsum(np.bincount(labels, minlength=len(classes))).tolist()
    table, start = [], 0
    for name, stop in zip(classes, stops, strict=True):
        own = names_checksum(ordered[start:stop])
        table.append([name, stop - start, own[:16]])
        start = stop
    return table


def read_fingerprints(path: pathlib.Path) -> dict[str, Fingerprint] | None:
    """The fingerprints by split that `write_fingerprints` wrote; None without the file.

    Raises:
      UserError: it is damaged.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        content = read_json(path, dict[str, Any])
    except UserError as error:
        raise _damaged(path, error) from error
    noted = unseal_if_sealed(content, source=str(path), way_out=_WAY_OUT)
    try:
        return checked(noted, dict[str, dict[str, Any]], source=f"{path}: ")
    except UserError as error:
        raise _damaged(path, error) from error


def write_fingerprints(path: pathlib.Path, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Note fingerprints by split in a JSON file, with a checksum."""
    write_atomically(path, (json.dumps(seal(fingerprints), indent=1) + "\n").encode())


def as_recorded(fingerprints: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """What `read_fingerprints` would give back."""
    return json.loads(json.dumps(fingerprints))


def changes_since(path: pathlib.Path, found: Mapping[str, Fingerprint]) -> list[tuple[str, str]]:
    """(split, change) since fingerprints were noted at `path`; see `changes`.

    Raises:
      UserError: the file is damaged.
    """
    recorded = read_fingerprints(path) or {}
    try:
        return [
            (split, line)
            for split in found
            if split in recorded
            for line in changes(recorded[split], found[split])
        ]
    except (TypeError, ValueError, LookupError) as error:
        raise _damaged(path, first_line(error)) from error


def _damaged(path, reason):
    return UserError(f"{path} is damaged ({reason}): {_WAY_OUT}")


def changes(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What has changed, in words; nothing if they are the same data.

    What only one of them tells is left out: other versions may tell less.
    """
    both = old.keys() & new.keys()
    lines = []
    if "count" in both and old["count"] != new["count"]:
        more = new["count"] - old["count"]
        lines.append(f"{old['count']} -> {new['count']} images ({more:+d})")
    if "classes" in both and old["classes"] and new["classes"]:
        told = _class_changes(_by_name(old["classes"]), _by_name(new["classes"]))
        if not told and old["classes"] != new["classes"]:  # of several with one name
            told = ["the classes are others"]
        lines += told
    for key in sorted(both - {"count", "classes"}):
        if old[key] != new[key]:
            lines.append(f"{key}: {_shown(old[key])} -> {_shown(new[key])}")
    return lines


def _shown(value):
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}..."


def _by_name(classes):
    """{name: (label, images and checksum)}"""
    parts = ((c[0], c[1:]) if isinstance(c, list | tuple) else (c, ()) for c in classes)
    return {name: (label, tuple(content)) for label, (name, content) in enumerate(parts)}


def _class_changes(old, new):
    gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
    by_content = {new[name][1]: name for name in added if new[name][1]}
    renamed = {name: by_content[old[name][1]] for name in gone if old[name][1] in by_content}
    lines = _first(f"class {a!r} is called {b!r} now" for a, b in renamed.items())
    lines += _first(f"class {name!r} is gone" for name in gone if name not in renamed)
    lines += _first(f"class {name!r} is new" for name in added if name not in renamed.values())
    moved = [(name, old[name][0], new[name][0]) for name in old if name in new]
    moved += [(b, old[a][0], new[b][0]) for a, b in renamed.items()]
    lines += _first(f"class {name!r} has label {b}, not {a}" for name, a, b in moved if a != b)
    lines += _first(
        _content_change(name, old[name][1], new[name][1])
        for name in old
        if name in new and old[name][1] and new[name][1] and old[name][1] != new[name][1]
    )
    return lines


def _content_change(name, old, new):
    if old[0] != new[0]:
        return f"class {name!r} has {new[0]} images, not {old[0]}"
    return f"class {name!r} has images of other names"


def _first(lines):
    lines = list(lines)
    more = [f"and {len(lines) - _SHOWN} more such"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more
