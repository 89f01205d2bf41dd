"""Untrusted JSON: read within bounds and validated against a schema.

A schema is a type that pydantic understands: a TypedDict whose values have the types below. Keys
that the schema does not name may hold anything.
"""

import functools
import json
import math
import os
import re
import reprlib
import stat
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from repae_jax.errors import UserError, first_line

# The most bytes of a JSON file: a configuration or manifest; a list of a few million images.
LARGEST, LARGEST_LIST = 64 << 20, 1 << 30


def whole(low: int, high: int) -> Any:
    """The type of integers from `low` to `high`, both included; bools are refused."""
    return Annotated[int, Field(ge=low, le=high)]


def real(low: float | None = None, high: float | None = None, *, finite: bool = True) -> Any:
    """The type of floats and integers from `low` to `high`; NaN is always refused.

    With `finite=False` infinities are accepted.
    """
    low = -math.inf if low is None and not finite else low
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=not finite)]


def each(kind: Any, least: int = 0, most: int = 64) -> Any:
    """The type of lists with `least` to `most` elements of the type `kind`."""
    return Annotated[list[kind], Field(min_length=least, max_length=most)]


Width = whole(1, 65_536)  # channels of a layer
Side = whole(1, 16_384)  # pixels along a side of an image
Count = whole(1, 10_000_000)  # images that a command makes or takes
Batch = whole(1, 65_536)  # images at a time
Text = Annotated[str, Field(max_length=4096)]


def _without_dots(name):
    if "." in name:
        raise PydanticCustomError("name", "give a name without dots, which separate keys")
    return name


Key = Annotated[Text, AfterValidator(_without_dots)]  # a user-given name in a ConfigDict

# pydantic's error type -> (words of our message, pydantic's key of the bound)
_BOUNDS = {
    "greater_than_equal": ("give at least", "ge"),
    "less_than_equal": ("give at most", "le"),
}


class _Reprs(reprlib.Repr):
    def repr_int(self, value, level):
        return super().repr_int(value, level) if abs(value) < 10**100 else "a number of many digits"

    def repr_instance(self, value, level):
        if getattr(value, "shape", ()) and hasattr(value, "dtype"):
            return f"an array of {value.dtype} {tuple(value.shape)}"
        return " ".join(super().repr_instance(value, level).split())


_reprs = _Reprs()
_reprs.maxlevel, _reprs.maxstring, _reprs.maxother = 3, 60, 60


def as_whole(text: str) -> int | None:
    """The integer that a text such as "0" or "120" names; None for any other text.

    `str.isdigit` would accept superscripts and thousands of digits, which int() refuses.
    """
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,17}", text) else None


def short_repr(value: Any) -> str:
    """A short repr of a value for error messages; for an array its type and shape."""
    return _reprs.repr(value)


def read_json(
    path: str | os.PathLike,
    schema: Any = None,
    *,
    largest: int = LARGEST,
    way_out: str = "restore it",
    unique: bool = False,
) -> Any:
    """The content of a JSON file, validated against `schema` if one is given.

    Args:
      path: the file's path.
      schema: see `check_schema`.
      largest: the most bytes that the file may have.
      way_out: the advice in the error for a damaged file.
      unique: refuse an object with a repeated key, of which the last would count.

    Raises:
      UserError: the file is missing, unreadable, not JSON, larger than `largest`, too deeply
        nested, or does not fit the schema.
    """
    text = read_bounded(path, largest)
    return parse_json(text, schema, source=str(path), way_out=way_out, unique=unique)


def read_bounded(path: str | os.PathLike, largest: int) -> bytes:
    """The content of a file of at most `largest` bytes.

    Raises:
      UserError: the file is missing, unreadable, no regular file, or larger.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no file")
            size = status.st_size
            text = file.read(min(size, largest) + 1)
    except (OSError, ValueError) as error:  # ValueError: the path itself is invalid
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); restore or permit it") from error
    if len(text) > largest:
        raise UserError(f"{path}: has over {largest >> 20} MiB, which no file of its kind has")
    return text


def _open_at_once(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def parse_json(
    text: str | bytes,
    schema: Any = None,
    *,
    source: str,
    way_out: str = "restore it",
    unique: bool = False,
) -> Any:
    """The content of a JSON text, validated against `schema` if one is given.

    Args:
      text: the JSON.
      schema: see `check_schema`.
      source: the text's name in an error.
      way_out: the advice in the error for a damaged text.
      unique: refuse an object with a repeated key, of which the last would count.

    Raises:
      UserError: the text is not JSON, too deeply nested, or does not fit the schema.
    """
    try:
        pairs = unrepeated if unique else None
        content = json.loads(text, parse_int=_number, object_pairs_hook=pairs)
    except RecursionError as error:
        raise UserError(f"{source} is damaged: nested beyond measure; {way_out}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{source} is damaged, no JSON ({first_line(error)}); {way_out}") from error
    return content if schema is None else check_schema(content, schema, source=f"{source}: ")


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json.loads`; raises ValueError if a key is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {short_repr(twice)} more than once")
    return found


def _number(text):
    """The integer of a text; a float if it exceeds 64 bits, which no array can hold."""
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(text)


def check_schema(content: Any, schema: Any, *, source: str) -> Any:
    """Return `content` unchanged if it fits the schema.

    Args:
      content: plain Python values, as JSON gives them.
      schema: a TypedDict, or another type that pydantic understands.
      source: the text before a key in an error: "x/config.json: " or "config.".

    Raises:
      UserError: `content` does not fit; the error names the first wrong key, its value, and the
        expected value.
    """
    try:
        _adapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        raise UserError(_line(error, source)) from error
    return content


@functools.cache
def _adapter(schema):
    return TypeAdapter(schema)


def _line(error, source):
    found = error.errors(include_url=False)
    first = found[0]
    steps = first["loc"]
    if steps and steps[-1] == "[key]":  # an invalid key, which the step before repeats
        steps = steps[:-2]
    path = "".join(f"[{short_repr(s)}]" if isinstance(s, int) else f".{s}" for s in steps)
    what = f"{source}{path.removeprefix('.')[:200]}" if path else source.rstrip(": .")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    if first["type"] == "missing":
        return f"{what} is missing{more}"
    if steps != first["loc"]:
        return f"{what} has the key {short_repr(first['input'])}: {_expected(first)}{more}"
    return f"{what} is {short_repr(first['input'])}: {_expected(first)}{more}"


def _expected(found):
    """The expected value in words."""
    if found["type"] in _BOUNDS:
        words, key = _BOUNDS[found["type"]]
        bound = found["ctx"][key]
        return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
    text = found["msg"].replace("Input should", "it must").replace("should", "must")
    return text[:1].lower() + text[1:].partition(" after validation")[0]
