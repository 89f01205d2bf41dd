"""Center crops: from a picture of any kind and size to a square of RGB pixels."""

from __future__ import annotations

import functools
import math
import typing

import numpy as np

if typing.TYPE_CHECKING:
    from PIL import Image

# Of a picture over this many times as long as wide, the middle is cut out before resizing.
_LONG = 64
# TIFF's tags (TIFF 6.0, sections 8 and 19).
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def rgb_square(
    image: Image.Image, size: int, *, exif: bool = False, crop: str = "adm"
) -> np.ndarray:
    """The RGB pixels of the picture's center: `to_rgb`, then a crop of `CROPS`.

    Args:
      image: a picture of any kind and size.
      size: pixels along a side of the result.
      crop: a key of `CROPS`.
      exif: first turn and mirror the picture by its EXIF orientation. The original ignores the
        orientation; a quarter turn moves the crop.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: the value of white is unknown for its samples (see `to_rgb`).
    """
    image = to_rgb(image)  # rebinding frees the stored picture
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
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
    from PIL.Image import Resampling

    line = max(image.size) > _LONG * min(image.size)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    if line:
        return _middle(image, size)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if left:  # Pillow resizes rows, then columns: cut in between, to skip columns outside the crop
        image = image.resize((width, image.height), Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, image.height))
        return image.resize((size, height), Resampling.BICUBIC)
    image = image.resize((width, height), Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _torchvision_crop(image, size, filter):
    """torchvision's Resize and CenterCrop: the longer side is rounded down, the offset to even."""
    from PIL.Image import Resampling

    if max(image.size) > _LONG * min(image.size):  # as in `center_crop`
        image = _cut_middle(image, _LONG * min(image.size))
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
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


def _middle(image, size):
    """The last step of `center_crop` in reverse order: cut, then resize."""
    from PIL.Image import Resampling

    short, long = min(image.size), max(image.size)
    resized = round(long * (size / short))
    ratio = long / resized  # pixels of the picture per pixel of the result
    start = (resized - size) // 2 * ratio
    stop = start + size * ratio
    reach = 2 * max(ratio, 1) + 1  # pixels on each side that the bicubic filter reads
    first, last = max(math.floor(start - reach), 0), min(math.ceil(stop + reach), long)
    if image.width > image.height:
        cut, box = (first, 0, last, short), (start - first, 0, stop - first, short)
    else:
        cut, box = (0, first, short, last), (0, start - first, short, stop - first)
    image = image.crop(cut)
    rows = (box[0], 0, box[2], image.height)  # rows, then columns, as Pillow resizes a picture
    image = image.resize((size, image.height), Resampling.BICUBIC, box=rows)
    return image.resize((size, size), Resampling.BICUBIC, box=(0, box[1], size, box[3]))
