"""The names of a state's networks in checkpoints of today and of version 1."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Version 1 called the networks by the one backbone and the one tokenizer that it had, and kept
# its teachers beside them, whatever they were called.
_ROLES = {"sit": "backbone", "vae": "tokenizer"}
_FIRST = {new: old for old, new in _ROLES.items()}

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
    if "frozen" in fields:
        frozen = fields["frozen"]
        teachers = {name: tree for name, tree in frozen.items() if _is_teacher(tree)}
        others = {_ROLES.get(k, k): tree for k, tree in frozen.items() if k not in teachers}
        fields["frozen"] = others | ({"teachers": teachers} if teachers else {})
    return fields


def _to_first(fields):
    fields = _renamed(fields, _FIRST)
    if "frozen" in fields:
        frozen = dict(fields["frozen"])
        teachers = frozen.pop("teachers", {})
        fields["frozen"] = {_FIRST.get(k, k): tree for k, tree in frozen.items()} | teachers
    return fields


def _is_teacher(tree):
    return "position_table" in tree.get("params", {})  # all teachers of version 1 are ViTs


def _renamed(fields, names):
    return {
        field: {names.get(key, key): tree for key, tree in content.items()}
        if field in ("params", "opt_state")
        else content
        for field, content in fields.items()
    }
