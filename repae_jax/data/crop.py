"""From a picture of any kind and size to a square of RGB pixels: ADM's centre crop."""

from __future__ import annotations

import math
import typing

import numpy as np

if typing.TYPE_CHECKING:
    from PIL import Image

# A picture this many times as long as wide is no ordinary one: its middle is cut out first.
_LONG = 64
# TIFF's tags (TIFF 6.0, sections 8 and 19).
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def rgb_square(image: Image.Image, size: int, *, exif: bool = False) -> np.ndarray:
    """The RGB pixels of the picture's centre: `to_rgb`, then `center_crop`.

    Args:
      image: of any kind and size.
      size: pixels along a side of the result.
      exif: first turn and mirror the picture as its EXIF orientation says. The original does
        not, and a quarter turn moves the crop.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: of its samples nobody knows what white is (see `to_rgb`).
    """
    image = to_rgb(image)  # the picture as it was stored may go
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return np.asarray(center_crop(image, size))


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB: alpha is dropped, not composited; EXIF orientation is ignored.

    Like the original's `convert("RGB")`, except that grey of 9 to 16 bits keeps its 8 highest.
    There PIL clips at 255, which turns nearly every such picture white.

    Raises:
      ValueError: the samples are signed, of 32 bits, or floats. PIL would shift, wrap or blacken
        them.
    """
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("its samples are signed integers, of which no file says what white is")
    if image.mode[0] in "IF":
        image = _highest_byte(image, tags)
    return image if image.mode == "RGB" else image.convert("RGB")


def _highest_byte(image, tags):
    from PIL import Image

    # PIL has 16 bits of grey in "I;16" and its byte orders, or in "I" where a file has no more.
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if image.mode == "F" or not sixteen:
        kind = "integers of 32 bits" if image.mode == "I" else "floats"
        raise ValueError(f"its samples are {kind}, of which no file says what white is")
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    grey = Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)
    grey.info = image.info.copy()  # EXIF data among it
    return grey


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture after its shorter side was brought to `size` pixels.

    ADM's procedure (arXiv 2105.05233, guided-diffusion), which published FID references are
    made with: halve with a box filter while the shorter side is at least twice `size`, resize
    bicubically to exactly `size`, cut the centre; an odd surplus leaves its extra pixel at the
    bottom or right. Smaller pictures are enlarged. Of a picture over 64 times as long as wide
    only the middle is resized, so that a line of pixels takes no gigabytes; rounding may differ
    there by a few levels from ADM's (of which Pillow 13 makes others than Pillow 12).

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
    if left:  # Pillow resizes rows, then columns: cut between, for columns that nobody will see
        image = image.resize((width, image.height), Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, image.height))
        return image.resize((size, height), Resampling.BICUBIC)
    image = image.resize((width, height), Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _middle(image, size):
    """`center_crop`'s last step the other way round: cut, then resize."""
    from PIL.Image import Resampling

    short, long = min(image.size), max(image.size)
    resized = round(long * (size / short))
    ratio = long / resized  # pixels here for one there
    start = (resized - size) // 2 * ratio
    stop = start + size * ratio
    reach = 2 * max(ratio, 1) + 1  # of the bicubic filter
    first, last = max(math.floor(start - reach), 0), min(math.ceil(stop + reach), long)
    if image.width > image.height:
        cut, box = (first, 0, last, short), (start - first, 0, stop - first, short)
    else:
        cut, box = (0, first, short, last), (0, start - first, short, stop - first)
    image = image.crop(cut)
    rows = (box[0], 0, box[2], image.height)  # rows, then columns, as Pillow does with the whole
    image = image.resize((size, image.height), Resampling.BICUBIC, box=rows)
    return image.resize((size, size), Resampling.BICUBIC, box=(0, box[1], size, box[3]))
