"""Finds a network's tensors in a file: the entry that holds them, and the prefix of their names.

Training frameworks wrap a network's names ("module.", "_orig_mod.", "first_stage_model."), keep
the network in an entry ("state_dict", "model"), and save other networks beside it. A network is
detected by its sign, a name that every file of the network has; the text before the sign is the
prefix.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from repae_jax.errors import UserError

WRAPPERS = ("module.", "_orig_mod.", "model.", "vae.", "first_stage_model.")
_DEPTH = 4  # levels of nested entries and lists
_SHOWN = 8  # groups of names in a message

Entry = tuple[str, ...]  # the keys that lead to a dict


@dataclasses.dataclass(frozen=True)
class Extract:
    """A network's tensors out of a file that may hold more.

    Attributes:
      tensors: the network's own names -> arrays.
      entry: the keys that lead to the tensors in the file.
      prefix: the prefix of their names in the file.
      left: (entry, name) of every other tensor of the file.
    """

    tensors: Mapping[str, np.ndarray]
    entry: Entry
    prefix: str
    left: Sequence[tuple[Entry, str]]

    @property
    def where(self) -> str:
        """The entry and the prefix, as "state_dict: module."; "" for neither."""
        return _place(self.entry, self.prefix)

    def without(self, other: "Extract | None") -> "Extract":
        """This extract without another extract's tensors in `left`."""
        if other is None:
            return self
        taken = {(other.entry, other.prefix + name) for name in other.tensors}
        return dataclasses.replace(self, left=[place for place in self.left if place not in taken])

    def left_text(self) -> str:
        """A summary of `left`: "loss.* (213 tensors), optimizer (4 tensors)"; "" if it is empty."""
        groups = collections.Counter(self._group(*place) for place in self.left)
        texts = [
            f"{group} ({count} tensor{'s' if count > 1 else ''})"
            for group, count in groups.most_common(_SHOWN)
        ]
        rest = sum(groups.values()) - sum(count for _, count in groups.most_common(_SHOWN))
        return ", ".join(texts) + (f" and {rest} more tensors" if rest else "")

    def _group(self, entry, name):
        if entry[: len(self.entry)] != self.entry:
            return entry[0] if entry else name
        if len(entry) > len(self.entry):
            return "/".join(entry[: len(self.entry) + 1])
        prefix = self.prefix if name.startswith(self.prefix) else ""
        head, dot, _ = name.removeprefix(prefix).partition(".")
        return f"{prefix}{head}{dot and '.*'}"


def extract(
    content: Mapping[str, Any], sign: str, *, source: str, ignore: Iterable[str] = ()
) -> Extract | None:
    """The tensors of the network with a name that has this sign; None if no name has it.

    Args:
      content: a file's content, arrays in nested dicts.
      sign: a regular expression that matches at the beginning of a name of the network.
      source: the file's name in an error.
      ignore: regular expressions (full match) of names, without the prefix, of other networks.

    Raises:
      UserError: the sign occurs in two entries or after two prefixes.
    """
    arrays = list(_arrays(content))
    pattern = re.compile(rf"(?<![^.])(?:{sign})")
    found = ((entry, name, pattern.search(name)) for entry, name, _ in arrays)
    places = {(entry, name[: match.start()]) for entry, name, match in found if match}
    if not places:
        return None
    if len(places) > 1:
        twice = " and ".join(_place(*place) or "the top level" for place in sorted(places))
        raise UserError(
            f"{source}: holds such a network under {twice}: put the one to read into a file of "
            "its own"
        )
    entry, prefix = places.pop()
    foreign = re.compile("|".join(ignore) or "(?!)")
    tensors, left = {}, []
    for path, name, array in arrays:
        own = name.removeprefix(prefix)
        if path == entry and name.startswith(prefix) and not foreign.fullmatch(own):
            tensors[own] = array
        else:
            left.append((path, name))
    return Extract(tensors, entry, prefix, left)


def wrappers_before(names: Iterable[str], sign: str) -> list[str]:
    """The combinations of `WRAPPERS` that precede the name `sign` in `names`, shortest first."""
    wrapped = re.compile(rf"((?:{'|'.join(map(re.escape, WRAPPERS))})*){re.escape(sign)}")
    return sorted({match[1] for name in names if (match := wrapped.fullmatch(name))}, key=len)


def _arrays(content: Any, entry: Entry = ()) -> Iterator[tuple[Entry, str, np.ndarray]]:
    """(the keys that lead to its dict, its name, the array) for every array in `content`."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        if isinstance(value, np.ndarray):
            yield entry, str(key), value
        elif isinstance(value, Mapping | list) and len(entry) < _DEPTH:
            yield from _arrays(value, (*entry, str(key)))


def _place(entry, name):
    return ": ".join(filter(None, ("/".join(entry), name)))
