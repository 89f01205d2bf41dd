"""Limits on the content of a pickle, which can refer to one object many times, even to itself."""

import argparse
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from repae_jax.errors import UserError
from repae_jax.utils.schema import short_repr

_DEEPEST = 32  # levels of nested dicts and lists; a training checkpoint has 5
_ENTRIES = 1_000_000  # entries of all dicts and lists, repeated objects counted repeatedly
# Bytes that the shapes of tensors may add up to: the larger of a constant and a multiple of the
# file's size.
_SMALL, _OFTEN = 1 << 29, 4


def check_claims(content: Any, path: pathlib.Path) -> None:
    """Raise UserError if torch read more from a file than a file of its size can hold.

    Tensors that repeat one number a billion times (strides of 0), dicts that contain themselves,
    and lists whose size doubles with each level take no memory until they are traversed or
    computed with. The check copies nothing.

    Args:
      content: nested dicts, lists, namespaces and tensors.
      path: the file.
    """
    size = path.stat().st_size
    left = max(_SMALL, _OFTEN * size)
    for count, (name, value) in enumerate(_entries(content, path)):
        if count > _ENTRIES:
            raise UserError(f"{path}: holds over {_ENTRIES} entries, which no file of weights does")
        if hasattr(value, "element_size"):
            left -= value.numel() * value.element_size()
        if left < 0:
            raise UserError(
                f"{path}: its tensors claim to hold far more than the file's {size} bytes, "
                f"{short_repr(name)} the shape {short_repr(tuple(value.shape))}: it is damaged, or "
                "repeats numbers in place of storing them"
            )


def _entries(content, path) -> Iterator[tuple[Any, Any]]:
    """(name, value) of every entry, depth first."""
    waiting = [iter([("", content)])]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            continue
        yield entry
        if inside := _inside(entry[1]):
            waiting.append(inside)
        if len(waiting) > _DEEPEST:
            raise UserError(f"{path}: nested beyond {_DEEPEST} levels, which no file of weights is")


def _inside(value):
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, argparse.Namespace):
        return iter(vars(value).items())
    if isinstance(value, list | tuple | set):
        return (("", item) for item in value)
    return None
