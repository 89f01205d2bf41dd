"""Figures of images and latents: functions from arrays to pixels. Curves are in `curves`.

Tiles are copied or enlarged by whole factors, never resampled, so a figure shows the model's
own pixels.
"""

import io
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from repae_jax.utils.atomic_files import write_atomically

PAPER, INK = 255, 34
TILE = 64  # pixels a side: smaller images are enlarged by a whole factor to about this size
PAD = 4
_NAME_WIDTH = 36  # characters of a line beside a row


def image_grid(images: np.ndarray, columns: int, *, pad: int = 2, scale: int = 1) -> np.ndarray:
    """Lay images out row by row on white.

    Args:
      images: (N, H, W, 3) uint8, N > 0.
      columns: images a row; unused places of the last row stay white.
      pad: white pixels between images and around them.
      scale: whole factor by which every pixel is enlarged.

    Returns:
      uint8 (rows * (scale H + pad) + pad, columns * (scale W + pad) + pad, 3).

    Raises:
      ValueError: images of another shape or dtype, or columns or scale under 1.
    """
    images = _check_images(images)
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    height, width = height * scale + pad, width * scale + pad
    grid = np.full((rows * height + pad, columns * width + pad, 3), PAPER, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height + pad, index % columns * width + pad
        tile = image.repeat(scale, 0).repeat(scale, 1)
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def class_grid(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], per_class: int
) -> np.ndarray:
    """The first `per_class` images of each class, one class a row with its name at the left.

    Args:
      images: (N, H, W, 3) uint8.
      labels: (N,) integers, indices into `classes`.
      classes: the rows' names; a class with too few images leaves places white.
      per_class: images a row.

    Returns:
      uint8 (height, width, 3).

    Raises:
      ValueError: images of another shape or dtype, not as many labels, or no classes.
    """
    images, labels = _check_images(images), np.asarray(labels)
    if labels.shape != images.shape[:1] or not len(classes):
        raise ValueError(
            f"{len(images)} images need as many labels and at least one class, got labels of "
            f"shape {labels.shape} and {len(classes)} classes"
        )
    rows = np.full((len(classes), per_class, *images.shape[1:]), PAPER, np.uint8)
    for index in range(len(classes)):
        chosen = images[labels == index][:per_class]
        rows[index, : len(chosen)] = chosen
    return _labeled_rows(rows, [str(name) for name in classes])


def pairs_figure(
    originals: np.ndarray, reconstructions: np.ndarray, *, columns: int = 10
) -> np.ndarray:
    """Each reconstruction directly below its original; both (N, H, W, 3) uint8.

    Returns:
      uint8 (height, width, 3), in bands of at most `columns` pairs.

    Raises:
      ValueError: images of another shape or dtype, or not as many of each.
    """
    return _strips({"original": originals, "reconstruction": reconstructions}, columns)


def pca_figure(
    images: np.ndarray, colors: Mapping[str, np.ndarray], *, columns: int = 10
) -> np.ndarray:
    """Images, and below each its latents as colors, one row per VAE.

    Args:
      images: (N, H, W, 3) uint8.
      colors: name -> (N, h, w, 3) uint8, from `latents.pca_colors`; each latent position
        becomes a block with 1 / h of the image's side.
      columns: images a band.

    Returns:
      uint8 (height, width, 3).

    Raises:
      ValueError: images of another shape or dtype, or not as many of each.
    """
    return _strips({"image": images, **colors}, columns)


def save_png(path: str | os.PathLike, picture) -> pathlib.Path:
    """Write a uint8 (H, W, 3) array or a matplotlib Figure as PNG, atomically; return the path.

    Raises:
      ValueError: an array of another shape or dtype.
      UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=160)
    else:
        from PIL import Image

        Image.fromarray(_check_images(np.asarray(picture)[None])[0]).save(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _strips(kinds, columns):
    """Bands of `columns` images with one row per kind, all enlarged to the first kind's size."""
    first = _check_images(next(iter(kinds.values())))
    for name, images in kinds.items():
        if len(_check_images(images)) != len(first):
            raise ValueError(f"{len(first)} images need as many of {name!r}, got {len(images)}")
    height, width = first.shape[1:3]
    stacked = np.stack([_enlarge(images, height, width) for images in kinds.values()])
    columns = min(columns, len(first))
    missing = -len(first) % columns
    stacked = np.pad(stacked, ((0, 0), (0, missing), *[(0, 0)] * 3), constant_values=PAPER)
    bands = np.split(stacked, stacked.shape[1] // columns, axis=1)
    pictures = [_labeled_rows(band, list(kinds)) for band in bands]
    gap = np.full((4 * PAD, *pictures[0].shape[1:]), PAPER, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:])


def _enlarge(images, height, width):
    """Nearest-neighbor enlargement: each source pixel covers an equal share of the target."""
    rows = np.arange(height) * images.shape[1] // height
    return images[:, rows][:, :, np.arange(width) * images.shape[2] // width]


def _labeled_rows(rows, names):
    """A grid of (R, columns, H, W, 3) tiles with `names` (R,) right-aligned at its left."""
    from PIL import Image, ImageDraw

    columns, height, width = rows.shape[1:4]
    scale = max(1, TILE // width)
    tiles = rows.reshape(-1, *rows.shape[2:])
    grid = image_grid(tiles, columns, pad=PAD, scale=scale)
    font = _font(max(15, grid.shape[1] // 55))
    names = [textwrap.fill(name, _NAME_WIDTH) for name in names]
    lines = [line for name in names for line in name.split("\n")]
    margin = int(max(font.getlength(line) for line in lines)) + 3 * PAD
    canvas = np.full((grid.shape[0], margin + grid.shape[1], 3), PAPER, np.uint8)
    canvas[:, margin:] = grid
    canvas = Image.fromarray(canvas)
    draw = ImageDraw.Draw(canvas)
    pitch = height * scale + PAD
    for index, name in enumerate(names):
        middle = PAD + index * pitch + height * scale // 2
        place = margin - PAD, middle
        draw.text(place, name, fill=(INK,) * 3, font=font, anchor="rm", align="right")
    return np.array(canvas)


def _font(size):
    """The font of the curves, which matplotlib ships and which covers most alphabets."""
    import matplotlib
    from PIL import ImageFont

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)


def _check_images(images):
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
        raise ValueError(
            f"images must be uint8 (N, H, W, 3) with N > 0, got {images.dtype} {images.shape}"
        )
    return images
