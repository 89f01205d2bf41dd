"""The names of a state's networks in current checkpoints and in those of version 1."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Version 1 named the networks after its only backbone ("sit") and its only tokenizer ("vae"), and
# kept the teachers in the same dict under their own names.
_ROLES = {"sit": "backbone", "vae": "tokenizer"}
_FIRST = {new: old for old, new in _ROLES.items()}

Fields = Mapping[str, Any]


class Names(NamedTuple):
    """Renaming of a checkpoint's fields ("params", "frozen", ...).

    Attributes:
      present: from the checkpoint's names to the current ones.
      stored: from the current names to the checkpoint's.
    """

    present: Callable[[Fields], dict[str, Any]]
    stored: Callable[[Fields], dict[str, Any]]


def names_of(held: Fields) -> Names:
    """The renaming for a checkpoint with the fields `held`."""
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
