"""Classes by number or name."""

import difflib
from collections.abc import Sequence

import numpy as np

from repae_jax.errors import UserError
from repae_jax.sampling.class_labels import NO_CLASS
from repae_jax.utils.schema import as_whole, short_repr

_SHOWN = 3  # names in a message


def class_numbers(
    given: Sequence[int | str | None], names: Sequence[str] | None, num_classes: int
) -> np.ndarray:
    """The labels (N,) int32 of classes that are given by number or name.

    Args:
      given: for each image a number from 0 to num_classes - 1, a name, a number as text ("7"), or
        None, which gives `NO_CLASS`. Case and white space around a name do not count. Of a name
        with commas, such as "tench, Tinca tinca", each part is a name as well.
      names: the names of the classes in their order; None if they are unknown.
      num_classes: the number of classes.

    Raises:
      UserError: nothing is given, or no class has this number or name; the message lists similar
        names.
    """
    if not len(given):
        raise UserError("the list of classes is empty: give at least one")
    known = _numbers(names or ())
    return np.array([_number(one, known, names, num_classes) for one in given], np.int32)


def _numbers(names):
    """{name: number}; of several classes with the same part of a name, the first one has it."""
    whole = {_plain(name): number for number, name in reversed(list(enumerate(names)))}
    parts = {
        _plain(part): number
        for number, name in reversed(list(enumerate(names)))
        for part in name.split(",")
    }
    return {**parts, **whole}


def _plain(name):
    return " ".join(name.casefold().split())


def _number(one, known, names, num_classes):
    if one is None:
        return NO_CLASS
    if isinstance(one, str):
        if (number := known.get(_plain(one))) is not None:
            return number
        number = as_whole(one.strip())
        if number is None:
            raise UserError(_unknown(one, known, names, num_classes))
    elif isinstance(one, int | np.integer) and not isinstance(one, bool):
        number = int(one)
    else:
        raise UserError(f"a class is {short_repr(one)}: give its number or its name")
    if not 0 <= number < num_classes:
        raise UserError(f"the class is {number}: the model's classes are 0 to {num_classes - 1}")
    return number


def _unknown(one, known, names, num_classes):
    what = f"the model has no class {short_repr(one)}"
    if not names:
        return f"{what}, and no names of classes: give a number from 0 to {num_classes - 1}"
    if close := difflib.get_close_matches(_plain(one), known, n=_SHOWN):
        similar = ", ".join(dict.fromkeys(repr(names[known[name]]) for name in close))
        return f"{what}: similar names are {similar}"
    first = ", ".join(map(repr, names[:_SHOWN]))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: its classes are {first}{more}, or numbers from 0 to {num_classes - 1}"
