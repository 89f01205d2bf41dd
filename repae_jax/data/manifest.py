"""The manifest of a packed data set (manifest.json), and the checks of its folder."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data.identity import Fingerprint
from repae_jax.errors import UserError
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import Text, check_schema, each, read_json, whole
from repae_jax.utils.sealed import digest, seal, unseal

FORMAT = "repae_jax packed 1"
MANIFEST = "manifest.json"
# The description of an unfinished data set, which has no manifest yet.
BEGUN = "progress/made.json"
SHARD_NAME = r"shard-\d{5,}-of-\d{5,}\.array_record"
# The advice in errors about a damaged shard.
HEAL = (
    "copy it again, or delete it and run the command that made the folder once more: it makes "
    "missing shards again"
)


class Shard(TypedDict):
    """One file of a packed data set."""

    file: Annotated[str, Field(pattern=f"^{SHARD_NAME}$")]
    count: whole(0, 2**40)
    bytes: whole(0, 2**60)
    sha256: Text


_BLANK = Shard(file="shard-00000-of-00001.array_record", count=0, bytes=0, sha256="")


class Manifest(TypedDict):
    """The entries of every manifest."""

    kind: Text
    num_classes: whole(1, 2**31)
    classes: each(Text, 1, 2**20) | None
    made: dict[str, Any]
    count: whole(0, 2**40)
    shards: each(Shard, 1, 2**20)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a packed data set.

    Returns:
      {"format": FORMAT, "kind": "images" or "latents", "count": the number of records,
      "num_classes": int, "classes": their names or None, "made": everything that determines the
      content, "shards": [{"file", "count", "bytes", "sha256"}, ...]}, and entries of its kind.

    Raises:
      UserError: the data set is missing, unfinished, damaged, or of another format.
    """
    folder = pathlib.Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / BEGUN).is_file():
            raise UserError(
                f"{folder} is unfinished: run the command that began it again, which resumes it"
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
    manifest, untouched = unseal(manifest)
    if not untouched:
        raise UserError(
            f"{path}: damaged or edited (its checksum differs); restore it, or prepare the "
            "data anew"
        )
    check_schema(manifest, Manifest, source=f"{path}: ")
    if sum(shard["count"] for shard in manifest["shards"]) != manifest["count"]:
        raise UserError(f"{path}: damaged, its shards do not hold {manifest['count']} records")
    return manifest


def check_writable(manifest: Mapping[str, Any]) -> None:
    """Raise UserError, before the work, for a manifest that `read_manifest` would refuse.

    Args:
      manifest: the manifest without "count" and "shards".
    """
    for name in manifest["classes"] or ():
        if not _is_unicode(name):
            raise UserError(
                f"the class {name!r} has a name that is not UTF-8, which a packed data set cannot "
                "keep: rename its folder"
            )
    check_schema({**manifest, "count": 0, "shards": [_BLANK]}, Manifest, source="the data's ")


def _is_unicode(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def manifest_fingerprint(manifest: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of the data of a manifest, see `data.identity`."""
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
    """Write a manifest, as `read_manifest` returns it, with its checksum."""
    write_json(folder / MANIFEST, seal(manifest))


def check_there(path: pathlib.Path, shard: dict[str, Any]) -> None:
    """Raise UserError unless the file of a manifest's shard exists in its full length."""
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
    """Raise one UserError that names all shards that `check_there` refuses."""
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
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file atomically; raises UserError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")
