"""Sets of images to measure, from files, folders and sources, read batch by batch in order."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data.decode import (
    MAX_PIXELS,
    decode_cropped,
    decode_pixels,
    picture_size,
    read_file,
)
from repae_jax.data.manifest import MANIFEST, read_manifest
from repae_jax.data.npz import open_array
from repae_jax.data.pipeline import eval_batches
from repae_jax.data.shards import PackedRecords
from repae_jax.data.walk import SUFFIXES, Walk
from repae_jax.errors import UserError, first_line
from repae_jax.evaluation.reference import IMAGES, keys_of
from repae_jax.utils.schema import Side, check_schema


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """A set of images of one size.

    Attributes:
      name: the set's name, for messages.
      count: number of images.
      resolution: pixels along a side.
      batches: function from a batch size to an iterator over all images in order, in batches uint8
        (b, H, W, 3), or float32 where `resized_images` says so; the last batch may be smaller.
    """

    name: str
    count: int
    resolution: int
    batches: Callable[[int], Iterator[np.ndarray]]

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images as a set; None: all images.

        Raises:
          UserError: the set has fewer images.
        """
        if count is None:
            return self
        if not 1 <= count <= self.count:
            raise UserError(f"{self.name} holds {self.count} images, {count} are requested")

        def batches(size):
            left = count
            for batch in self.batches(min(size, count)):
                yield batch[:left]
                left -= len(batch)
                if left <= 0:
                    return

        return dataclasses.replace(self, count=count, batches=batches)


def pad_batch(batch: np.ndarray, size: int) -> np.ndarray:
    """Repeat a batch's last image up to `size`, so that all batches have one compiled shape."""
    missing = size - len(batch)
    return batch if not missing else np.concatenate([batch, batch[-1:].repeat(missing, 0)])


def open_images(path: str | os.PathLike, resolution: int | None = None) -> ImageSet:
    """Open the images of a file or folder.

    Args:
      path: an `.npz` whose `arr_0` is uint8 (N, H, W, 3), as `generate` and ADM's scripts write
        it; a folder that `prepare` wrote; or a folder of picture files, with or without subfolders.
      resolution: pixels along a side. Picture files of another size are cropped as in `prepare`; an
        .npz or a prepared folder must have this size. None: picture files must have one size.

    Raises:
      UserError: there are no images, they are damaged, or their sizes differ.
    """
    path = pathlib.Path(path)
    if resolution is not None:
        check_schema(resolution, Side, source="--resolution")
    if path.is_dir():
        opener = _open_packed if (path / MANIFEST).exists() else _open_pictures
    elif zipfile.is_zipfile(path) or (path.suffix == ".npz" and path.exists()):
        opener = _open_npz
    else:
        raise UserError(
            f"{path}: there are no images; name an .npz, a folder of pictures, or one that "
            "`python -m repae_jax prepare` wrote"
        )
    images = opener(path, resolution)
    if not images.count:
        raise UserError(f"{path} holds no images")
    if resolution not in (None, images.resolution):
        raise UserError(
            f"{path} holds images of {images.resolution} x {images.resolution} pixels, not "
            f"{resolution}"
        )
    return images


def has_images(path: str | os.PathLike) -> bool:
    """Whether a file or folder may hold images; False for an `.npz` with statistics only."""
    return pathlib.Path(path).is_dir() or IMAGES in keys_of(path)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """Picture files as a source, cropped to `resolution`, or required to have it (`crop` False)."""

    files: list[str]
    resolution: int
    crop: bool

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        path = self.files[index]
        data = read_file(path)
        if self.crop:
            return {"image": decode_cropped(data, self.resolution, path)}
        width, height = picture_size(data, path)
        if not width == height == self.resolution:
            raise UserError(
                f"{path}: {width} x {height} pixels, but pictures must be squares of one size: "
                "give --resolution to crop them"
            )
        return {"image": decode_pixels(data, self.resolution, path)}


def find_pictures(folder: str | os.PathLike) -> list[str]:
    """The sorted paths of the picture files in a folder and its subfolders.

    Raises:
      UserError: there are none, or a folder cannot be read.
    """
    walk = Walk(folder)
    files = [os.path.join(folder, file) for file in walk.pictures()]
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    walk.left_out.say(folder)
    return files


def _open_pictures(folder, resolution):
    files = find_pictures(folder)
    side = resolution or picture_size(read_file(files[0]), files[0])[1]
    pictures = _Pictures(files, side, crop=resolution is not None)
    return from_source(pictures, str(folder), side)


@dataclasses.dataclass(frozen=True, eq=False)
class _Packed:
    """The images of packed records as a source."""

    records: PackedRecords
    resolution: int

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        name = self.records.record_name(index)
        return {"image": decode_pixels(self.records[index]["image"], self.resolution, name)}


class _Made(TypedDict):
    resolution: Side


def _open_packed(folder, _):
    manifest = read_manifest(folder)
    if manifest["kind"] != "images":
        raise UserError(f"{folder} holds packed {manifest['kind']}, not images")
    side = check_schema(manifest["made"], _Made, source=f"{folder}/{MANIFEST}: made.")["resolution"]
    return from_source(_Packed(PackedRecords(folder), side), str(folder), side)


def from_source(source: Sequence, name: str, resolution: int) -> ImageSet:
    """Make an image set from a source, whose elements are {"image": uint8 (H, H, 3), ...}."""

    def batches(size):
        return (batch["image"] for batch in eval_batches(source, size))

    return ImageSet(name, len(source), resolution, batches)


def _open_npz(path, _):
    """Open an .npz as a stream, because it may be larger than the memory."""
    with _array_file(path) as (_, shape):
        count, side = shape[:2]

    def batches(size):
        with _array_file(path) as (file, _), _explained(path):
            for start in range(0, count, size):
                wanted = min(size, count - start) * side * side * 3
                data = file.read(wanted)
                if len(data) != wanted:
                    raise ValueError(f"it ends at image {start} of {count}")
                yield np.frombuffer(data, np.uint8).reshape(-1, side, side, 3)

    return ImageSet(str(path), count, side, batches)


@contextlib.contextmanager
def _array_file(path):
    """Open the images of an .npz; yields the file, positioned after the header, and the shape."""
    with contextlib.ExitStack() as opened:
        with _explained(path):
            file, shape, dtype = opened.enter_context(open_array(path, IMAGES))
            if dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
                raise ValueError(f"{IMAGES} is {dtype} {shape}, not uint8 (N, H, H, 3)")
            if shape[1] * shape[2] > MAX_PIXELS:
                raise ValueError(f"{shape[1]} x {shape[2]} pixels are more than {MAX_PIXELS:,}")
        yield file, shape


@contextlib.contextmanager
def _explained(path):
    try:
        yield
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
        raise UserError(
            f"{path}: cannot be read as an .npz with RGB pixels in {IMAGES} ({first_line(error)}); "
            "make it anew"
        ) from error
