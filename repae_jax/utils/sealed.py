"""JSON with a checksum of its content, which reveals damage and edits."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError

KEY = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its checksum under the key `KEY`."""
    return {**content, KEY: digest(content)}


def unseal(content: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The content without its checksum, and whether the checksum matches."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return rest, content.get(KEY) == digest(rest)


def unseal_if_sealed(content: Mapping[str, Any], *, source: str, way_out: str) -> dict[str, Any]:
    """The content without its checksum; content that has no checksum is accepted.

    Older versions and users who edit by hand write content without a checksum.

    Args:
      content: the content of a JSON file.
      source: the file's name in an error.
      way_out: the advice in an error.

    Raises:
      UserError: the checksum does not match.
    """
    rest, untouched = unseal(content)
    if KEY in content and not untouched:
        raise UserError(
            f"{source} is damaged or was edited (its checksum differs): {way_out}; if the edit "
            f"is meant, delete the key {KEY!r} in it"
        )
    return rest


def digest(content: Any) -> str:
    """SHA-256 of a value that JSON can hold; the order of keys does not matter."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
