"""What a packed data set says of itself: the file manifest.json, and the checks of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from repae_jax.atomic import write_atomically
from repae_jax.data.identity import Fingerprint, digest
from repae_jax.errors import UserError

FORMAT = "repae_jax packed 1"
MANIFEST = "manifest.json"
# An unfinished data set has this file, and no manifest.
BEGUN = "progress/made.json"
SHARD_NAME = r"shard-\d{5,}-of-\d{5,}\.array_record"
# The way out for a damaged shard.
HEAL = (
    "copy it again, or delete it and run the command that made the folder once more: it makes "
    "missing shards again"
)

_ENTRY_TYPES = {"file": str, "count": int, "bytes": int, "sha256": str}
_KEYS = {"kind", "num_classes", "classes", "made", "count", "shards"}


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """What a packed data set says of itself.

    Returns:
      {"format": FORMAT, "kind": "images" or "latents", "count": of all records,
      "num_classes": int, "classes": their names or None, "made": everything that decides the
      content, "shards": [{"file", "count", "bytes", "sha256"}, ...], and what its kind adds}.

    Raises:
      UserError: there is no packed data set, it is unfinished, damaged, or of another format.
    """
    folder = pathlib.Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / BEGUN).is_file():
            raise UserError(
                f"{folder} is unfinished: run the command that began it once more, it goes on there"
            )
        raise UserError(f"{folder} holds no packed data set (it has no {MANIFEST})")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise UserError(f"{path}: damaged, or not the manifest of a packed data set")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path}: its format is {manifest['format']!r}, this version reads {FORMAT!r}; "
            "prepare the data anew, or read them with the version that made them"
        )
    if manifest.pop("sha256", None) != digest(manifest) or not _is_whole(manifest):
        raise UserError(
            f"{path}: damaged or edited (its checksum is another); restore it, or prepare the "
            "data anew"
        )
    return manifest


def manifest_fingerprint(manifest: Mapping[str, Any]) -> Fingerprint:
    """What tells the data of a manifest from others, see `data.identity`."""
    made = {f"made.{key}": value for key, value in manifest["made"].items() if key != "data"}
    return {
        "source": "packed" if manifest["kind"] == "images" else manifest["kind"],
        "count": manifest["count"],
        "num_classes": manifest["num_classes"],
        "classes": manifest["classes"],
        **made,
        "content": digest([[shard["count"], shard["sha256"]] for shard in manifest["shards"]]),
    }


def write_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Write what `read_manifest` returns, and a checksum of it."""
    write_json(folder / MANIFEST, {**manifest, "sha256": digest(manifest)})


def check_there(path: pathlib.Path, shard: dict[str, Any]) -> None:
    """Raise UserError unless the file of a manifest's shard is there in its full length."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: missing ({error.strerror}); put it back, or run the command that made the "
            "folder once more: it makes missing shards again"
        ) from error
    if size != shard["bytes"]:
        raise UserError(f"{path}: damaged, {size} bytes instead of {shard['bytes']}; {HEAL}")


def check_all_there(folder: pathlib.Path, shards: Sequence[dict[str, Any]]) -> None:
    """Raise UserError that names the files of all shards which `check_there` would refuse."""
    errors = []
    for shard in shards:
        try:
            check_there(folder / shard["file"], shard)
        except UserError as error:
            errors.append((shard["file"], error))
    if len(errors) > 1:
        names = ", ".join(name for name, _ in errors[:5]) + (", ..." if len(errors) > 5 else "")
        raise UserError(
            f"{folder}: {len(errors)} of {len(shards)} shards are missing or cut short ({names}): "
            "put them back, or run the command that made the folder once more: it makes missing "
            "shards again"
        )
    for _, error in errors:
        raise error


def checksum(path: pathlib.Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; raises UserError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); permit it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, no JSON ({error}); restore it, or begin anew") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file in one go; raises UserError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")


def _is_whole(manifest):
    """Whether a manifest of this format has what every reader takes for granted."""
    shards = manifest.get("shards")
    return (
        set(manifest) >= _KEYS
        and isinstance(shards, list)
        and len(shards) > 0
        and all(_is_entry(shard) for shard in shards)
        and sum(shard["count"] for shard in shards) == manifest["count"]
    )


def _is_entry(shard):
    return (
        isinstance(shard, dict)
        and all(type(shard.get(key)) is kind for key, kind in _ENTRY_TYPES.items())
        and re.fullmatch(SHARD_NAME, shard["file"]) is not None
    )
