"""Images that are resized one by one, from their own sizes, to the size of a network's input."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from repae_jax.data.decode import decode_prepared, read_file
from repae_jax.data.manifest import MANIFEST
from repae_jax.evaluation.image_sets import ImageSet, find_pictures, from_source, open_images
from repae_jax.models.inception import SIZE

_THREADS = 4
_LONGEST = 64  # times the shorter side: more would take gigabytes to resize

Resize = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> (side, side, 3)


def resize_clean(pixels: np.ndarray) -> np.ndarray:
    """Resize as clean-fid's mode "clean" does (arXiv 2104.11222), for InceptionV3.

    Each channel is resized by PIL's bicubic filter with antialias in float32, clipped to [0, 255],
    and not rounded.

    Args:
      pixels: uint8 (H, W, 3).

    Returns:
      float32 (299, 299, 3).
    """
    from PIL import Image
    from PIL.Image import Resampling

    channels = [
        Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(pixels, 2, 0)
    ]
    resized = [channel.resize((SIZE, SIZE), Resampling.BICUBIC) for channel in channels]
    return np.stack(resized, axis=2).clip(0, 255)


def resize_shorter(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize the shorter side by PIL's bicubic filter, and cut out the middle, as CLIP does.

    The longer side is rounded down. An odd surplus leaves its extra pixel at the bottom or right.

    Args:
      pixels: uint8 (H, W, 3).
      side: pixels along a side of the result.

    Returns:
      uint8 (side, side, 3).

    Raises:
      ValueError: the picture is over 64 times as long as wide.
    """
    from PIL import Image
    from PIL.Image import Resampling

    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    if long > _LONGEST * short:
        raise ValueError(f"{width} x {height} pixels are over {_LONGEST} times as long as wide")
    scaled = int(side * long / short)
    width, height = (side, scaled) if height > width else (scaled, side)
    resized = Image.fromarray(pixels).resize((width, height), Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def open_clean(path: str | os.PathLike, resolution: int | None = None) -> ImageSet:
    """Open images as `open_images` does, each resized by `resize_clean` from its own size.

    Args:
      path: see `open_images`; picture files may have any sizes.
      resolution: pixels along a side to which picture files are cropped first; None: no crop.

    Raises:
      UserError: there are no images, or they are damaged.
    """
    path = pathlib.Path(path)
    if resolution is None and path.is_dir() and not (path / MANIFEST).exists():
        return resized_pictures(find_pictures(path), str(path), resize_clean, SIZE)
    return clean_set(open_images(path, resolution))


def clean_set(images: ImageSet) -> ImageSet:
    """A set with each image resized by `resize_clean`, several at a time."""

    def batches(size):
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            for batch in images.batches(size):
                yield np.stack(list(threads.map(resize_clean, batch)))

    return dataclasses.replace(images, resolution=SIZE, batches=batches)


def resized_pictures(files: Sequence[str], name: str, resize: Resize, side: int) -> ImageSet:
    """Picture files of any sizes as a set of equal ones.

    Args:
      files: the paths.
      name: the set's name, for messages.
      resize: makes each picture (side, side, 3).
      side: pixels along a side of the results.
    """
    return from_source(_Pictures(files, resize), name, side)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """Picture files as a source, each resized from its own size."""

    files: Sequence[str]
    resize: Resize

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path = self.files[index]
        return {"image": decode_prepared(read_file(path), path, self.resize)}
