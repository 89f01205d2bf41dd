"""From a picture of any kind and size to a square of RGB pixels: ADM's centre crop."""

from __future__ import annotations

import typing

import numpy as np

if typing.TYPE_CHECKING:
    from PIL import Image


def rgb_square(image: Image.Image, size: int, *, exif: bool = False) -> np.ndarray:
    """The RGB pixels of the picture's centre: `to_rgb`, then `center_crop`.

    Args:
      image: of any kind and size.
      size: pixels along a side of the result.
      exif: first turn and mirror the picture as its EXIF orientation says. The original does
        not, and a quarter turn moves the crop.

    Returns:
      uint8 (size, size, 3).
    """
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return np.asarray(center_crop(to_rgb(image), size))


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB: alpha is dropped, not composited; EXIF orientation is ignored.

    Like the original's `convert("RGB")`, except that 16-bit grey keeps its high byte. There PIL
    clips it at 255, which turns nearly every such picture white.
    """
    if image.mode.startswith("I"):  # I;16 and its byte orders, or I as older versions of PIL say
        from PIL import Image

        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture after its shorter side was brought to `size` pixels.

    ADM's procedure (arXiv 2105.05233, guided-diffusion), which published FID references are
    made with: halve with a box filter while the shorter side is at least twice `size`, resize
    bicubically to exactly `size`, cut the centre; an odd surplus leaves its extra pixel at the
    bottom or right. Smaller pictures are enlarged.

    Returns:
      A (size, size) picture of the same mode.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if left:  # Pillow resizes rows, then columns: cut between, for columns that nobody will see
        image = image.resize((width, image.height), Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, image.height))
        return image.resize((size, height), Resampling.BICUBIC)
    image = image.resize((width, height), Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
