"""From a file's bytes to RGB pixels, with errors that say which file it was."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import threading
import typing
import warnings
from collections.abc import Iterator

import numpy as np

from repae_jax.data.crop import rgb_square, to_rgb
from repae_jax.data.npz import read_header
from repae_jax.errors import BadImage, UserError, first_line

if typing.TYPE_CHECKING:
    from PIL import Image

# The formats that are decoded, whatever a file is called. Pillow knows forty more, and hands one of
# them (EPS) to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
# A few bytes may claim as many; to decode them takes 1.8 GB at most (WebP), else half of that. The
# pictures that a process decodes at a time, in several threads, have no more together.
MAX_PIXELS = 100_000_000

_BEGINNING = 1 << 20  # bytes: pictures may have a frame or a sky in common
_NPY = b"\x93NUMPY"  # what the files of numpy.save begin with


class WrongSize(UserError):
    """A prepared image of another size than is wanted: `width` and `height` are its own."""

    def __init__(self, message: str, width: int = 0, height: int = 0):
        super().__init__(message)
        self.width, self.height = width, height


def read_beginning(path: str) -> bytes:
    """The beginning of a file's content, which tells it from others; raises as `read_file`."""
    return read_file(path, _BEGINNING)


def read_file(path: str, most: int = -1) -> bytes:
    """A file's content, or `most` bytes of it; raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
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
    with _explained(data, name):
        image = _open(data)
        with _decoding.taken(math.prod(image.size)):
            return rgb_square(image, size, exif=exif)


def decode_pixels(data: bytes, size: int, name: str) -> np.ndarray:
    """A prepared picture's RGB pixels as they are (see `to_rgb`), or numpy's own file of them.

    Args:
      data: a file's content.
      size: pixels along a side; what has others is not decoded.
      name: of the picture, for messages.

    Returns:
      uint8 (size, size, 3).

    Raises:
      BadImage: it cannot be decoded.
      UserError: it has another size.
    """
    with _explained(data, name):
        image = _read_npy(data) if data.startswith(_NPY) else _open(data)
    if not isinstance(image, np.ndarray):
        _check_size(image.size, size, name)
        with _explained(data, name), _decoding.taken(math.prod(image.size)):
            image = np.asarray(to_rgb(image))
    return checked_size(image, size, name)


def picture_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of an encoded picture, from its header; raises BadImage if it is none."""
    with _explained(data, name):
        return _open(data).size


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


class _Share:
    """Something of which threads take parts in turn, so that none waits for ever."""

    def __init__(self, whole: int):
        self._left = whole
        self._turn, self._returned = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def taken(self, part: int) -> Iterator[None]:
        """Take a part, as soon as that much is left; no larger one than the whole."""
        with self._turn, self._returned:
            self._returned.wait_for(lambda: part <= self._left)
            self._left -= part
        try:
            yield
        finally:
            with self._returned:
                self._left += part
                self._returned.notify()  # of those who wait only one has its turn


_decoding = _Share(MAX_PIXELS)


@functools.cache
def _silence_pillow():
    """No warning of large pictures: `MAX_PIXELS` decides."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _open(data: bytes) -> Image.Image:
    """The picture in a file's content, of which only the header has been read.

    The one place that opens pictures.
    """
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
def _explained(data: bytes, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # PIL and numpy raise many kinds for damaged files
        reason = _reason(error) if data else "it is empty"
        raise BadImage(f"{name}: not a readable image ({reason}); repair or remove it") from error


def _reason(error):
    if isinstance(error, MemoryError):
        return "it does not fit the memory"
    # PIL names what it read from: here a buffer's address, which says nothing
    return first_line(error).split(" <_io.")[0]
