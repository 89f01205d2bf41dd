"""Fingerprints that identify data, and the changes between two fingerprints.

A fingerprint is a small dict that JSON can hold. It does not depend on where the data lie:

    source      the kind of source
    count       the number of images
    classes     in the order of the labels, [name, number of images, checksum of the images' names,
                checksum of the content of a few images] or the first of these; None if unknown
    ...         further keys that identify data of this kind
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError, first_line
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import Text, check_schema, read_json, whole
from repae_jax.utils.sealed import seal, unseal_if_sealed

FILE = "data.json"  # the file of fingerprints
Fingerprint = Mapping[str, Any]
_THREADS = 8  # threads that read images: a network disk is slow
_SHOWN = 3  # changes of one kind in a message
_LONGEST = 40  # characters of a value in a message
_WAY_OUT = "restore it, or remove it if the data are what they were"


def names_checksum(names: Iterable[str]) -> str:
    """SHA-256 of a sequence of names."""
    joined = "\0".join([*names, ""])
    return hashlib.sha256(joined.encode("utf-8", "surrogateescape")).hexdigest()


def class_table(
    names: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    content: Callable[[int], bytes],
) -> list[list[str | int]]:
    """The `classes` of a fingerprint.

    Args:
      names: the images' names, in their order.
      labels: the images' labels, (N,) integers.
      classes: the classes' names.
      content: index -> bytes of the image; several threads call it for the first, middle and last
        image of each class.
    """
    order = np.argsort(labels, kind="stable").tolist()
    stops = np.cumsum(np.bincount(labels, minlength=len(classes))).tolist()
    members = [order[start:stop] for start, stop in itertools.pairwise([0, *stops])]
    samples = [sample(len(indexes)) for indexes in members]
    sums = contents_checksums(
        ([indexes[k] for k in few] for indexes, few in zip(members, samples, strict=True)), content
    )
    return [
        [name, len(indexes), names_checksum(map(names.__getitem__, indexes))[:16], own]
        for name, indexes, own in zip(classes, members, sums, strict=True)
    ]


def sample(count: int, most: int = 3) -> list[int]:
    """At most `most` evenly spaced integers of 0..count - 1, including the first and the last."""
    last = max(min(count, most) - 1, 1)
    return sorted({round(k * (count - 1) / last) for k in range(min(count, most))})


def contents_checksums(
    groups: Iterable[Iterable[int]], content: Callable[[int], bytes]
) -> list[str]:
    """One checksum of the content of each group of image indexes; `content` as in `class_table`."""

    def checksum(index):
        return xxhash.xxh3_128_digest(content(index))

    groups = [list(group) for group in groups]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(checksum, itertools.chain.from_iterable(groups))
        joined = [b"".join(itertools.islice(digests, len(group))) for group in groups]
    return [xxhash.xxh3_128_hexdigest(digest)[:16] for digest in joined]


class _Recorded(TypedDict):
    """The part of a split's fingerprint that all versions have written."""

    source: Text
    count: whole(0, 2**40)


class _Train(TypedDict):
    train: Any


def read_fingerprints(path: pathlib.Path) -> dict[str, Fingerprint] | None:
    """{split: fingerprint} from a file of `write_fingerprints`; None if it does not exist.

    Raises:
      UserError: the file is damaged, or `path` is no file.
    """
    if not is_file_there(path, _WAY_OUT):
        return None
    recorded = read_json(path, way_out=_WAY_OUT)
    if isinstance(recorded, dict):
        recorded = unseal_if_sealed(recorded, source=str(path), way_out=_WAY_OUT)
    try:
        for schema in (_Train, dict[str, _Recorded]):
            check_schema(recorded, schema, source="its content: ")
    except UserError as error:
        raise _damaged(path, error) from error
    return recorded


def write_fingerprints(path: pathlib.Path, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Write {split: fingerprint} to a JSON file with a checksum."""
    write_atomically(path, (json.dumps(seal(fingerprints), indent=1) + "\n").encode())


def as_recorded(fingerprints: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """The fingerprints as `read_fingerprints` would return them."""
    return json.loads(json.dumps(fingerprints))


def changes_since(path: pathlib.Path, found: Mapping[str, Fingerprint]) -> list[tuple[str, str]]:
    """(split, change) for every change between the fingerprints at `path` and `found`.

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
    """The changes between two fingerprints in words; empty for the same data.

    Keys that only one fingerprint has are ignored, because other versions may write fewer keys.
    """
    both = old.keys() & new.keys()
    lines = []
    if "count" in both and old["count"] != new["count"]:
        more = new["count"] - old["count"]
        lines.append(f"{old['count']} -> {new['count']} images ({more:+d})")
    if "classes" in both and old["classes"] and new["classes"]:
        lines += _class_changes(*_common_entries(old["classes"], new["classes"]))
    for key in sorted(both - {"count", "classes"}):
        if old[key] != new[key]:
            lines.append(f"{key}: {_shown(old[key])} -> {_shown(new[key])}")
    return lines


def _shown(value):
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}..."


def _common_entries(*tables):
    """The entries of both tables, as tuples of the length of the shortest entry."""
    tables = [[tuple(c) if isinstance(c, list | tuple) else (c,) for c in t] for t in tables]
    length = min(len(entry) for table in tables for entry in table)
    return [[entry[:length] for entry in table] for table in tables]


def _class_changes(old, new):
    """The changes between two tables of (name, number of images, checksums...)."""
    if old == new:
        return []
    lines = _changes_by_name(*({c[0]: (k, c[1:]) for k, c in enumerate(t)} for t in (old, new)))
    return lines or ["the classes differ"]  # classes with equal names


def _changes_by_name(old, new):
    """The changes between two {name: (label, (number of images, checksums...))}."""
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
        if name in new and old[name][1] != new[name][1]
    )
    return lines


def _content_change(name, old, new):
    if old[0] != new[0]:
        return f"class {name!r} has {new[0]} images, not {old[0]}"
    if old[1:2] != new[1:2]:
        return f"class {name!r} has images of other names"
    return f"class {name!r} has other images under the same names"


def _first(lines):
    lines = list(lines)
    more = [f"and {len(lines) - _SHOWN} more such"] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more
