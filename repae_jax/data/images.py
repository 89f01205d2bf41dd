"""Pixels to the bytes of an image file; `decode` goes the other way."""

import io

import numpy as np

from repae_jax.errors import UserError

FORMATS = ("png", "webp", "jpeg", "raw")


def encode_pixels(image: np.ndarray, format: str = "png", quality: int | None = None) -> bytes:
    """uint8 RGB (H, W, 3) as a file of that format.

    PNG is lossless, and so is WebP without a `quality`; JPEG's is 95 without one, and its colours
    are never subsampled. "raw" is numpy's own file: the largest, and the fastest to read.

    Raises:
      UserError: an unknown format, a quality outside 1..100, or one for PNG.
    """
    from PIL import Image

    if format not in FORMATS:
        raise UserError(f"image format {format!r} is not known: use one of {', '.join(FORMATS)}")
    if quality is not None and (format in ("png", "raw") or not 1 <= quality <= 100):
        raise UserError(
            f"quality is {quality} for {format}: give 1 to 100 for jpeg or webp, none else"
        )
    buffer = io.BytesIO()
    if format == "raw":
        np.save(buffer, image, allow_pickle=False)
        return buffer.getvalue()
    options = {
        "png": {"compress_level": 1},  # speed before the last bytes
        "webp": {"lossless": True} if quality is None else {"quality": quality},
        "jpeg": {"quality": quality or 95, "subsampling": 0},
    }[format]
    Image.fromarray(image).save(buffer, format=format, **options)
    return buffer.getvalue()
