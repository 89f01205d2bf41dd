"""JSON that others may have written or edited: read within bounds, checked against a schema.

A schema is a type that pydantic understands: a TypedDict whose values are built of the types here.
Keys that it does not name are left alone.
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

# Bytes of a JSON file: a configuration or manifest, and a list of a few million images.
LARGEST, LARGEST_LIST = 64 << 20, 1 << 30


def whole(low: int, high: int) -> Any:
    """The type of whole numbers from `low` to `high`; a bool is none."""
    return Annotated[int, Field(ge=low, le=high)]


def real(low: float | None = None, high: float | None = None, *, finite: bool = True) -> Any:
    """The type of floats, or whole numbers, from `low` to `high`; NaN never is one."""
    low = -math.inf if low is None and not finite else low
    return Annotated[float, Field(ge=low, le=high, allow_inf_nan=not finite)]


def each(kind: Any, least: int = 0, most: int = 64) -> Any:
    """The type of lists of `least` to `most` elements of a type."""
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


Key = Annotated[Text, AfterValidator(_without_dots)]  # a name that somebody gave, of a ConfigDict

# pydantic's names of errors -> our words, and its name of the bound
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
    """The number that a text writes as int() does, "0" or "120"; None for any other text.

    Python's own `isdigit` takes a superscript, which int() refuses, as it does thousands of digits.
    """
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,17}", text) else None


def shown(value: Any) -> str:
    """A value as an error shows it, cut to fit a line; of an array its type and shape."""
    return _reprs.repr(value)


def read_json(
    path: str | os.PathLike,
    schema: Any = None,
    *,
    largest: int = LARGEST,
    way_out: str = "restore it",
) -> Any:
    """The content of a JSON file, checked against `schema` if there is one.

    Args:
      path: of the file.
      schema: see `checked`.
      largest: bytes that it may have.
      way_out: what the error for a damaged one advises.

    Raises:
      UserError: it is missing, unreadable, no JSON, of more than `largest` bytes, nested beyond
        measure, or does not fit the schema.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no file")
            size = status.st_size
            text = file.read(min(size, largest) + 1)
    except (OSError, ValueError) as error:  # of a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); restore or permit it") from error
    if len(text) > largest:
        raise UserError(f"{path}: has over {largest >> 20} MiB, which no file of its kind has")
    return parse_json(text, schema, source=str(path), way_out=way_out)


def _open_at_once(path, flags):
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def parse_json(
    text: str | bytes, schema: Any = None, *, source: str, way_out: str = "restore it"
) -> Any:
    """What a JSON text says, checked against `schema` if there is one.

    Raises:
      UserError: as `read_json`; `source` is how the error calls the text.
    """
    try:
        content = json.loads(text, parse_int=_number)
    except RecursionError as error:
        raise UserError(f"{source} is damaged: nested beyond measure; {way_out}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{source} is damaged, no JSON ({first_line(error)}); {way_out}") from error
    return content if schema is None else checked(content, schema, source=f"{source}: ")


def _number(text):
    """A whole number; one beyond 64 bits, which no array holds, is a float."""
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(text)


def checked(content: Any, schema: Any, *, source: str) -> Any:
    """`content` as it is, if it fits the schema.

    Args:
      content: plain Python values, such as JSON gives.
      schema: a TypedDict, or another type of pydantic's.
      source: what stands before the path of a value in an error: "x/config.json: " or "config.".

    Raises:
      UserError: it does not fit; names the first key, its value, and what is expected.
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
    if steps and steps[-1] == "[key]":  # which is the step before, too
        steps = steps[:-2]
    path = "".join(f"[{shown(s)}]" if isinstance(s, int) else f".{s}" for s in steps)
    what = f"{source}{path.removeprefix('.')[:200]}" if path else source.rstrip(": .")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    if first["type"] == "missing":
        return f"{what} is missing{more}"
    if steps != first["loc"]:
        return f"{what} has the key {shown(first['input'])}: {_expected(first)}{more}"
    return f"{what} is {shown(first['input'])}: {_expected(first)}{more}"


def _expected(found):
    """What a value should have been, in words."""
    if found["type"] in _BOUNDS:
        words, key = _BOUNDS[found["type"]]
        bound = found["ctx"][key]
        return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
    text = found["msg"].replace("Input should", "it must").replace("should", "must")
    return text[:1].lower() + text[1:].partition(" after validation")[0]
