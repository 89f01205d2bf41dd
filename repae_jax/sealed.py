"""JSON that carries a checksum of its content, by which damage and edits show."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its checksum."""
    return {**content, KEY: _digest(content)}


def unseal(content: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What was sealed, and whether it is what it was then."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return rest, content.get(KEY) == _digest(rest)


def _digest(content):
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
