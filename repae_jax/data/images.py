"""Encodes pixels as the bytes of an image file; `decode` is the inverse."""

import io

import numpy as np

from repae_jax.errors import UserError

FORMATS = ("png", "webp", "jpeg", "raw")


def encode_pixels(image: np.ndarray, format: str = "png", quality: int | None = None) -> bytes:
    """Encode uint8 RGB pixels (H, W, 3) as a file.

    Args:
      image: the pixels.
      format: "png" (lossless); "webp" (lossless without a `quality`); "jpeg" (quality 95 by
        default, without chroma subsampling); or "raw", numpy's .npy file, the largest and the
        fastest to read.
      quality: 1 to 100, for "webp" and "jpeg".

    Raises:
      UserError: an unknown format, a quality outside 1..100, or a quality for "png" or "raw".
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
