"""Decodes a file's bytes to RGB pixels; errors name the file."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import threading
import typing
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from repae_jax.data.crop import RandomWindow, rgb_square, to_rgb
from repae_jax.data.npz import read_header
from repae_jax.errors import BadImage, UserError, first_line

if typing.TYPE_CHECKING:
    from PIL import Image

# The accepted formats, whatever a file's name. Pillow supports forty more, and runs another program
# for one of them (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
# The most pixels of a picture, and of all pictures that the threads of a process decode at a time:
# a few bytes may claim any number. Decoding this many takes 1.8 GB for WebP, half of it otherwise.
MAX_PIXELS = 100_000_000

_BEGINNING = 1 << 20  # bytes: enough to differ, although pictures may share a frame or a sky
_NPY = b"\x93NUMPY"  # the first bytes of files of numpy.save


class WrongSize(UserError):
    """A prepared image of a wrong size; `width` and `height`, in pixels, are its own size."""

    def __init__(self, message: str, width: int = 0, height: int = 0):
        super().__init__(message)
        self.width, self.height = width, height


def read_beginning(path: str) -> bytes:
    """The first MiB of a file, enough to tell it from other files; raises as `read_file`."""
    return read_file(path, _BEGINNING)


def read_file(path: str, most: int = -1) -> bytes:
    """A file's content, or its first `most` bytes; raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike, error: OSError) -> UserError:
    """The error for a file or folder of the data that the system does not let be read."""
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); put it back or permit it"
    )


def decode_cropped(
    data: bytes,
    size: int,
    name: str,
    *,
    exif: bool = False,
    crop: str = "adm",
    window: RandomWindow | None = None,
) -> np.ndarray:
    """Decode a picture of any kind and size to the RGB pixels of a square (see `rgb_square`).

    Args:
      data: a file's content.
      size: pixels along a side of the result.
      name: the picture's name in messages.
      exif: turn the picture by its EXIF orientation.
      crop: a key of `crop.CROPS`.
      window: the place of a random crop; None crops the center.

    Returns:
      uint8 (size, size, 3).

    Raises:
      BadImage: the content cannot be decoded.
    """
    with _as_bad_image(data, name):
        image = _open(data)
        with _decoding.reserve(math.prod(image.size)):
            return rgb_square(image, size, exif=exif, crop=crop, window=window)


def decode_pixels(data: bytes, size: int, name: str) -> np.ndarray:
    """Decode a prepared picture, or a .npy file of pixels, without cropping (see `to_rgb`).

    Args:
      data: a file's content.
      size: pixels along a side; pictures of another size are not decoded.
      name: the picture's name in messages.

    Returns:
      uint8 (size, size, 3).

    Raises:
      BadImage: the content cannot be decoded.
      WrongSize: the picture has another size.
    """
    with _as_bad_image(data, name):
        image = _read_npy(data) if data.startswith(_NPY) else _open(data)
    if not isinstance(image, np.ndarray):
        _check_size(image.size, size, name)
        with _as_bad_image(data, name), _decoding.reserve(math.prod(image.size)):
            image = np.asarray(to_rgb(image))
    return check_pixels(image, size, name)


def decode_prepared(
    data: bytes, name: str, prepare: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Decode a picture of any kind at its own size (see `to_rgb`), and prepare it for a network.

    Args:
      data: a file's content.
      name: the picture's name in messages.
      prepare: uint8 (H, W, 3) -> the result; a ValueError says why the picture does not serve.

    Raises:
      BadImage: the content cannot be decoded or prepared.
    """
    with _as_bad_image(data, name):
        image = _open(data)
        with _decoding.reserve(math.prod(image.size)):
            return prepare(np.asarray(to_rgb(image)))


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height, in pixels, from the header of a picture; raises BadImage for others."""
    with _as_bad_image(data, name):
        return _open(data).size


def _read_npy(data):
    """The array of a .npy file without objects; the images of a data set share one header."""
    end = data.find(b"\n", 12) + 1  # of the header, which begins at byte 10 or 12
    if not end:
        raise ValueError("its header is cut short")
    with _parsing:
        shape, fortran, dtype = _npy_layout(data[:end])
    flat = np.frombuffer(data, dtype, math.prod(shape), end)
    return flat.reshape(shape, order="F" if fortran else "C").copy()


# numpy parses headers as Python literals, which can fail in CPython 3.11 when several threads do it
# ("AST constructor recursion depth mismatch").
_parsing = threading.Lock()


@functools.lru_cache(maxsize=256)
def _npy_layout(header):
    return read_header(io.BytesIO(header))


def check_pixels(pixels: np.ndarray, size: int, name: str) -> np.ndarray:
    """Return the pixels; raise BadImage or WrongSize unless they are uint8 (size, size, 3)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise BadImage(f"{name}: {pixels.dtype} {pixels.shape} is not uint8 (H, W, 3)")
    _check_size(pixels.shape[1::-1], size, name)
    return pixels


def _check_size(found, size, name):
    if found != (size, size):
        width, height = found
        raise WrongSize(
            f"{name}: {width} x {height} pixels, not {size} x {size}; set the resolution that the "
            "data were prepared with, or prepare them anew",
            width,
            height,
        )


class _Budget:
    """A budget of which threads reserve parts in the order of their requests."""

    def __init__(self, whole: int):
        self._left = whole
        self._turn, self._returned = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def reserve(self, part: int) -> Iterator[None]:
        """Wait until `part` is free, and hold it during the block; at most the whole budget."""
        with self._turn, self._returned:
            self._returned.wait_for(lambda: part <= self._left)
            self._left -= part
        try:
            yield
        finally:
            with self._returned:
                self._left += part
                self._returned.notify()  # only one thread waits for this; the others wait for _turn


_decoding = _Budget(MAX_PIXELS)


@functools.cache
def _silence_pillow():
    """Turn off Pillow's warning about large pictures; `MAX_PIXELS` limits them."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _open(data: bytes) -> Image.Image:
    """Open a picture and read only its header. All pictures are opened here."""
    from PIL import Image, UnidentifiedImageError

    _silence_pillow()
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    if not all(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels")
    if math.prod(image.size) > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} that are read"
        )
    return image


@contextlib.contextmanager
def _as_bad_image(data: bytes, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # PIL and numpy raise many types for damaged files
        reason = _reason(error) if data else "it is empty"
        raise BadImage(f"{name}: not a readable image ({reason}); repair or remove it") from error


def _reason(error):
    if isinstance(error, MemoryError):
        return "it does not fit the memory"
    # cut off PIL's name of the file, here the address of a buffer
    return first_line(error).split(" <_io.")[0]
