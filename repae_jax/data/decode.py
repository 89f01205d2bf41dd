"""From a file's bytes to RGB pixels, with errors that say which file it was."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import threading
import typing
from collections.abc import Iterator

import numpy as np

from repae_jax.data.crop import rgb_square, to_rgb
from repae_jax.data.npz import read_header
from repae_jax.errors import UserError

if typing.TYPE_CHECKING:
    from PIL import Image

_NPY = b"\x93NUMPY"  # what the files of numpy.save begin with


class BadImage(UserError):
    """What was read is no image that can be decoded: cut short, empty, or something else.

    The only fault that `data.on_bad_image = "skip"` passes over. A file that cannot be read, or a
    damaged shard, is never skipped: that may be the disk's fault, and another one's tomorrow.
    """


def read_file(path: str) -> bytes:
    """A file's content; raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); put it back or permit it"
        ) from error


def decode_cropped(data: bytes, size: int, name: str, *, exif: bool = False) -> np.ndarray:
    """An encoded picture of any kind and size as its centre's RGB pixels (see `rgb_square`).

    Args:
      data: a file's content.
      size: pixels along a side of the result.
      name: of the picture, for messages.
      exif: turn it as its EXIF data say.

    Returns:
      uint8 (size, size, 3).

    Raises:
      BadImage: it cannot be decoded.
    """
    with _opened(data, name) as image:
        return rgb_square(image, size, exif=exif)


def decode_pixels(data: bytes, name: str) -> np.ndarray:
    """An encoded picture's RGB pixels as they are (see `to_rgb`), or numpy's own file of them.

    Returns:
      uint8 (H, W, 3).

    Raises:
      BadImage: it cannot be decoded.
    """
    if data.startswith(_NPY):
        with _explained(data, name):
            return _read_npy(data)
    with _opened(data, name) as image:
        return np.asarray(to_rgb(image))


def _read_npy(data):
    """What numpy.load reads, but for objects: the images of a data set share one header."""
    end = data.find(b"\n", 12) + 1  # of the header, which begins at byte 10 or 12
    if not end:
        raise ValueError("its header is cut short")
    with _parsing:
        shape, fortran, dtype = _npy_layout(data[:end])
    flat = np.frombuffer(data, dtype, math.prod(shape), end)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


# numpy reads headers as Python's literals, which CPython 3.11 does not always manage when several
# threads do ("AST constructor recursion depth mismatch").
_parsing = threading.Lock()


@functools.lru_cache(maxsize=256)
def _npy_layout(header):
    return read_header(io.BytesIO(header))


def checked_size(pixels: np.ndarray, size: int, name: str) -> np.ndarray:
    """The pixels; raises UserError unless they are uint8 (size, size, 3)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise BadImage(f"{name}: {pixels.dtype} {pixels.shape} is not uint8 (H, W, 3)")
    if pixels.shape[:2] != (size, size):
        height, width = pixels.shape[:2]
        raise UserError(
            f"{name}: {width} x {height} pixels, but data.resolution = {size}; set the resolution "
            "that the data were prepared with, or prepare them anew"
        )
    return pixels


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    from PIL import Image

    with _explained(data, name), Image.open(io.BytesIO(data)) as image:
        if not all(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels")
        yield image


@contextlib.contextmanager
def _explained(data: bytes, name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # PIL and numpy raise many kinds for damaged files
        reason = _without_address(error) if data else "it is empty"
        raise BadImage(
            f"{name}: not a readable image ({reason}); repair or remove it (train, encode: or pass "
            'over such images with data.on_bad_image = "skip"; prepare: --on-bad-image skip)'
        ) from error


def _without_address(error):
    """PIL names what it read from: here a buffer's address, which says nothing."""
    return str(error).split(" <_io.")[0] or type(error).__name__
