"""One record of a packed data set: a flat dict of values, as msgpack bytes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError, first_line

Value = bytes | int | float | str | np.ndarray

_SCALARS = (bytes, int, float, str)
_DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 bfloat16 float32 float64".split()
)
_ARRAY_KEYS = {"dtype", "shape", "data"}
# keeps file names that are not UTF-8 unchanged, as Python's file functions do
_UNICODE_ERRORS = "surrogateescape"


def pack(record: Mapping[str, Value]) -> bytes:
    """The bytes of a record; equal records give equal bytes.

    Arrays are stored as {"dtype", "shape", "data"}, row-major and little-endian.

    Args:
      record: name -> value; integers have at most 64 bits.

    Raises:
      TypeError: a name or value has another type; the message names it.
    """
    import msgpack

    packed = {_check_key(key): _pack_value(key, value) for key, value in record.items()}
    return msgpack.packb(packed, unicode_errors=_UNICODE_ERRORS)


def unpack(data: bytes, name: str = "record") -> dict[str, Value]:
    """The inverse of `pack`; arrays are read-only views of the bytes.

    Args:
      data: the bytes.
      name: the record's name in messages.

    Raises:
      UserError: the bytes are not those of a record.
    """
    import msgpack

    try:
        record = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
        return {_check_key(key): _unpack_value(key, value) for key, value in record.items()}
    except Exception as error:  # msgpack and numpy raise many types for damaged bytes
        raise UserError(
            f"{name}: damaged, not a packed record ({first_line(error)}); make its data set anew"
        ) from error


def _check_key(key):
    if type(key) is not str:
        raise TypeError(f"the name {key!r} is no str")
    return key


def _pack_value(key, value):
    if type(value) in _SCALARS:
        return value
    if not isinstance(value, np.ndarray) or value.dtype.name not in _DTYPES:
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{key!r} is of type {kind}: give bytes, int, float, str or a plain array")
    data = value.astype(_dtype(value.dtype.name)).tobytes()
    return {"dtype": value.dtype.name, "shape": list(value.shape), "data": data}


def _unpack_value(key, value) -> Any:
    if type(value) in _SCALARS:
        return value
    if not isinstance(value, dict) or set(value) != _ARRAY_KEYS or value["dtype"] not in _DTYPES:
        raise ValueError(f"{key!r} is neither a value nor an array")
    dtype, shape, data = _dtype(value["dtype"]), value["shape"], value["data"]
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"{key!r} has the shape {shape}")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key!r} has {len(data)} bytes for the shape {shape} of {dtype}")
    return np.ndarray(shape, dtype, buffer=data)


def _dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")
