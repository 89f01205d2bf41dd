"""JSON that carries a checksum of its content, by which damage and edits show."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError

KEY = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its checksum."""
    return {**content, KEY: digest(content)}


def unseal(content: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What was sealed, and whether it is what it was then."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return rest, content.get(KEY) == digest(rest)


def unseal_if_sealed(content: Mapping[str, Any], *, source: str, way_out: str) -> dict[str, Any]:
    """What was sealed; content without a seal, of an older version or edited by hand, as it is.

    Raises:
      UserError: it is not what it was then.
    """
    rest, untouched = unseal(content)
    if KEY in content and not untouched:
        raise UserError(
            f"{source} is damaged or was edited (its checksum is another): {way_out}; if the edit "
            f"is meant, delete the key {KEY!r} in it"
        )
    return rest


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
