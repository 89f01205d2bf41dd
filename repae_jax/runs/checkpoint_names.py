"""The names of a state's networks in checkpoints of today and of version 1."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Version 1 called the networks by the one backbone and the one tokenizer that it had, and kept
# its teachers beside them.
_ROLES = {"sit": "backbone", "vae": "tokenizer"}
_BESIDE_TEACHERS = ("backbone", "lpips")

Fields = Mapping[str, Any]


class Names(NamedTuple):
    """How a checkpoint's fields ("params", "frozen", ...) become today's, and back."""

    present: Callable[[Fields], dict[str, Any]]
    stored: Callable[[Fields], dict[str, Any]]


def names_of(held: Fields) -> Names:
    """Those of a checkpoint that holds these fields."""
    if _ROLES.keys() & held.get("params", {}).keys():
        return Names(_from_first, _to_first)
    return Names(dict, dict)


def _from_first(fields):
    fields = _renamed(fields, _ROLES)
    frozen = fields.get("frozen", {})
    teachers = {name: tree for name, tree in frozen.items() if name not in _BESIDE_TEACHERS}
    others = {name: tree for name, tree in frozen.items() if name in _BESIDE_TEACHERS}
    if teachers:
        others["teachers"] = teachers
    return {**fields, "frozen": others} if frozen else fields


def _to_first(fields):
    fields = _renamed(fields, {new: old for old, new in _ROLES.items()})
    if "frozen" in fields:
        frozen = dict(fields["frozen"])
        frozen |= frozen.pop("teachers", {})
        fields["frozen"] = frozen
    return fields


def _renamed(fields, names):
    return {
        field: {names.get(key, key): tree for key, tree in content.items()}
        if field in ("params", "opt_state", "frozen")
        else content
        for field, content in fields.items()
    }
