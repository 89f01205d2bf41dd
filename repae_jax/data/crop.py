"""Crops: from a picture of any kind and size to a square of RGB pixels."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable

import numpy as np

if typing.TYPE_CHECKING:
    from PIL import Image

# A picture over this many times as long as wide is cut before resizing.
_LONG = 64
# TIFF's tags (TIFF 6.0, sections 8 and 19).
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
# Of PIL's filters: the pixels on each side that they read, where they enlarge.
_SUPPORT = {"BILINEAR": 1, "BICUBIC": 2, "LANCZOS": 3}


@dataclasses.dataclass(frozen=True)
class RandomWindow:
    """A random place of a crop, see `random_crop`.

    Attributes:
      shorter: pixels to which the picture's shorter side is resized.
      draw: most -> a random integer of 0..most.
    """

    shorter: int
    draw: Callable[[int], int]


def rgb_square(
    image: Image.Image,
    size: int,
    *,
    exif: bool = False,
    crop: str = "adm",
    window: RandomWindow | None = None,
) -> np.ndarray:
    """The RGB pixels of a square in the picture: `to_rgb`, then a crop.

    Args:
      image: a picture of any kind and size.
      size: pixels along a side of the result.
      crop: a key of `CROPS`.
      exif: first turn and mirror the picture by its EXIF orientation. The original ignores the
        orientation; a quarter turn moves the crop.
      window: the place of a random crop (`random_crop`); None crops the center by `CROPS`.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: the value of white is unknown for its samples (see `to_rgb`).
    """
    image = to_rgb(image)  # rebinding frees the stored picture
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if window is not None:
        return np.asarray(random_crop(image, size, window, crop))
    return np.asarray(CROPS[crop](image, size))


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB: alpha is dropped without compositing; EXIF orientation is ignored.

    It does what the original's `convert("RGB")` does, except that gray of 9 to 16 bits keeps its 8
    highest bits. PIL would clip such samples at 255, which turns nearly every picture white.

    Raises:
      ValueError: the samples are signed, of 32 bits, or floats. PIL would shift, wrap or blacken
        them.
    """
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("its samples are signed integers, for which no file defines white")
    if image.mode[0] in "IF":
        image = _highest_byte(image, tags)
    return image if image.mode == "RGB" else image.convert("RGB")


def _highest_byte(image, tags):
    from PIL import Image

    # PIL holds 16-bit gray in the modes "I;16*", or in "I" for formats of at most 16 bits.
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if image.mode == "F" or not sixteen:
        kind = "integers of 32 bits" if image.mode == "I" else "floats"
        raise ValueError(f"its samples are {kind}, for which no file defines white")
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    gray = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    gray = Image.fromarray(255 - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray)
    gray.info = image.info.copy()  # with the EXIF data
    return gray


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the picture's shorter side to `size` pixels, and cut out the middle square.

    This is ADM's procedure (arXiv 2105.05233, guided-diffusion), with which published FID
    references are made: halve with a box filter while the shorter side is at least twice `size`,
    resize bicubically to exactly `size`, cut the center; an odd surplus leaves its extra pixel at
    the bottom or right. Smaller pictures are enlarged. Of a picture over 64 times as long as wide
    only the middle is resized, because resizing all of a line of pixels would take gigabytes; its
    rounding may differ by a few levels from ADM's (which also differs between Pillow 12 and 13).

    Returns:
      A (size, size) picture of the same mode.
    """
    line = _is_line(image)
    image = _halve(image, size)
    width, height = resized = _round_sides(image.size, size)
    cut = _cut_first if line else _resize_first
    return cut(image, size, resized, ((width - size) // 2, (height - size) // 2), "BICUBIC")


def random_crop(
    image: Image.Image, size: int, window: RandomWindow, crop: str = "adm"
) -> Image.Image:
    """Resize the picture's shorter side to `window.shorter` pixels, and cut out a random square.

    For the rules "bicubic" and "bilinear" this is torchvision's Resize and RandomCrop. All places
    of the square in the resized picture are equally likely, and `window.draw` is called for its
    top, then for its left. Of a picture over 64 times as long as wide only the surroundings of the
    square are resized; its pixels may differ by a few levels.

    Args:
      image: a picture of any size.
      size: pixels along a side of the result, at most `window.shorter`.
      window: the shorter side, and the random place.
      crop: a key of `CROPS`, whose filter and rounding resize the picture. "lanczos" keeps the
        whole picture here, and rounds as torchvision does.

    Returns:
      A (size, size) picture of the same mode.
    """
    line, adm = _is_line(image), crop == "adm"
    if adm:
        image = _halve(image, window.shorter)
    width, height = resized = (_round_sides if adm else _truncate_sides)(image.size, window.shorter)
    top, left = window.draw(height - size), window.draw(width - size)
    cut = _cut_first if line else _resize_first if adm else _resize_whole
    return cut(image, size, resized, (left, top), "BICUBIC" if adm else crop.upper())


def _is_line(image):
    return max(image.size) > _LONG * min(image.size)


def _halve(image, size):
    """ADM's first step: halve while the shorter side is at least twice `size`."""
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    return image


def _round_sides(sides, shorter):
    """Width and height of a picture that is resized to this shorter side, as ADM rounds them."""
    scale = shorter / min(sides)
    return tuple(round(side * scale) for side in sides)


def _truncate_sides(sides, shorter):
    """As `_round_sides`, as torchvision rounds them."""
    return tuple(int(shorter * side / min(sides)) for side in sides)


def _resize_whole(image, size, resized, corner, filter):
    """As `_resize_first`, with Pillow's choice of the axis that comes first."""
    from PIL.Image import Resampling

    left, top = corner
    return image.resize(resized, Resampling[filter]).crop((left, top, left + size, top + size))


def _resize_first(image, size, resized, corner, filter):
    """A square of the picture after it was resized, rows before columns.

    Args:
      image: the picture.
      size: pixels along a side of the square.
      resized: width and height of the resized picture.
      corner: left and top of the square in it.
      filter: a name in PIL's `Resampling`.
    """
    from PIL.Image import Resampling

    (width, height), (left, top), filter = resized, corner, Resampling[filter]
    if width > size:  # Pillow resizes rows, then columns: cut in between, to skip columns outside
        image = image.resize((width, image.height), filter)
        image = image.crop((left, 0, left + size, image.height))
    return image.resize((size, height), filter).crop((0, top, size, top + size))


def _cut_first(image, size, resized, corner, filter):
    """`_resize_first` in reverse order, for a picture of which it would resize too much."""
    from PIL.Image import Resampling

    spans = [
        _source_span(side, size, *place, support=_SUPPORT[filter])
        for side, *place in zip(image.size, resized, corner, strict=True)
    ]
    (left, right, *columns), (top, bottom, *rows) = spans
    image = image.crop((left, top, right, bottom))
    box = (columns[0], 0, columns[1], image.height)  # rows, then columns, as Pillow resizes
    image = image.resize((size, image.height), Resampling[filter], box=box)
    return image.resize((size, size), Resampling[filter], box=(0, rows[0], size, rows[1]))


def _source_span(side, size, resized, corner, support):
    """The pixels of a picture, along one axis, that a window of the resized picture shows.

    Args:
      side: of the picture, in pixels.
      size: of the window, in pixels of the resized picture.
      resized: side of the resized picture.
      corner: the window's first pixel in it.
      support: pixels on each side that the filter reads.

    Returns:
      The first pixel that is read, the last plus 1, and the window's two ends counted from the
      first (floats).
    """
    ratio = side / resized  # pixels of the picture per pixel of the result
    start = corner * ratio
    stop = side if corner + size == resized else start + size * ratio
    reach = support * max(ratio, 1) + 1
    first, last = max(math.floor(start - reach), 0), min(math.ceil(stop + reach), side)
    return first, last, start - first, stop - first


def _torchvision_crop(image, size, filter):
    """torchvision's Resize and CenterCrop: the longer side is rounded down, the offset to even."""
    from PIL.Image import Resampling

    if _is_line(image):  # as in `center_crop`
        image = _cut_middle(image, _LONG * min(image.size))
    width, height = _truncate_sides(image.size, size)
    image = image.resize((width, height), Resampling[filter])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _square_first(image, size):
    """Cut the middle square, then resize it by Lanczos' filter (U-ViT, arXiv 2209.12152)."""
    from PIL.Image import Resampling

    return _cut_middle(image, min(image.size)).resize((size, size), Resampling.LANCZOS)


def _cut_middle(image, most):
    """The picture's middle, at most `most` pixels along each side."""
    boxes = [((side - most) // 2, (side + most) // 2) if side > most else (0, side)
             for side in image.size]  # fmt: skip
    (left, right), (top, bottom) = boxes
    return image.crop((left, top, right, bottom))


CROPS = {
    "adm": center_crop,
    "bicubic": functools.partial(_torchvision_crop, filter="BICUBIC"),  # diffusion-bench
    "bilinear": functools.partial(_torchvision_crop, filter="BILINEAR"),  # fuse-dit
    "lanczos": _square_first,  # U-ViT and REPA on MS-COCO
}
