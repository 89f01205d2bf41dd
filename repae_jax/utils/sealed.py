"""JSON that carries a checksum of its content, by which damage and edits show."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its checksum."""
    return {**content, KEY: digest(content)}


def unseal(content: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What was sealed, and whether it is what it was then."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return rest, content.get(KEY) == digest(rest)


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
