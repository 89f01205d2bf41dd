"""The original's `images.h5`: one file of images that the original's preprocessing has cropped.

    images.h5        "00000/img00000000.png": a PNG as a byte string (or ".npy": the pixels
                     themselves, uint8 (3, H, W)); "dataset.json": {"labels": [[name, label], ...]}
    images_h5.json   the names in images.h5, in any order

Images are read in the order of their sorted names, as the original does.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from repae_jax.data.decode import WrongSize, check_pixels, decode_pixels
from repae_jax.data.identity import Fingerprint, class_table
from repae_jax.data.kinds import HDF5, refuse_other
from repae_jax.data.source import check_label, key_name, setting, split_folder
from repae_jax.data.walk import SUFFIXES, LeftOut, kind_of
from repae_jax.errors import BadImage, UserError, first_line

if typing.TYPE_CHECKING:
    import h5py

IMAGES, NAMES, LABELS = HDF5, "images_h5.json", "dataset.json"
_SMALL = 1 << 24  # bytes that an entry may always have, even if the images or the file are small


@dataclasses.dataclass(frozen=True, eq=False)
class Hdf5Source:
    """Images in an HDF5 file; every process opens the file on its first access.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      files: sorted names in the HDF5 file.
      labels: int32 (N,).
      path: the HDF5 file.
      resolution: pixels along a side of the images.
    """

    name: str
    num_classes: int
    files: tuple[str, ...]
    labels: np.ndarray
    path: str
    resolution: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        name, entry = self.image_name(index), self._stored(index)
        if self.files[index].lower().endswith(".npy"):
            image = check_pixels(_pixels(entry, name), self.resolution, name)
        else:
            image = decode_pixels(_bytes(entry, name), self.resolution, name)
        return {"image": image, "label": np.int32(self.labels[index])}

    def image_name(self, index: int) -> str:
        return f"{self.path}, {self.files[index]}"

    def fingerprint(self) -> Fingerprint:
        classes = [str(label) for label in range(int(self.labels.max()) + 1)]
        table = class_table(self.files, self.labels, classes, self._content)
        return {"source": "hdf5", "count": len(self), "classes": table}

    def _content(self, index):
        with contextlib.suppress(BadImage):
            return _bytes(self._stored(index), "")
        return b""

    def _stored(self, index):
        limit = max(_SMALL, 16 * self.resolution**2)  # twice the bytes of 16-bit RGBA
        return _entry(self._file, self.files[index], self.image_name(index), limit)

    @functools.cached_property
    def _file(self) -> h5py.File:
        return _open_file(self.path)

    def __getstate__(self) -> dict[str, typing.Any]:
        # an open file belongs to its process
        return {key: value for key, value in self.__dict__.items() if key != "_file"}


def open_hdf5(data_config: typing.Any, split: str) -> Hdf5Source:
    """Open a folder that the original's preprocessing wrote.

    The file does not store the number of classes: `num_classes` may exceed the largest label by
    more than 1; None takes the largest label plus 1.

    Args:
      data_config: its `path` holds images.h5 and images_h5.json, or the folders `train` and
        `heldout` with these files.
      split: "train" or "heldout"; "train" may be `path` itself.

    Raises:
      UserError: h5py is not installed; a file is missing or damaged; a name occurs twice, has no
        label, or a label out of range; the images have another resolution.
    """
    folder = split_folder(
        data_config.path,
        split,
        lambda root: (root / IMAGES).exists(),
        f"{IMAGES} and {NAMES}",
        called=key_name(data_config, "path"),
    )
    missing = [name for name in (IMAGES, NAMES) if not (folder / name).is_file()]
    if missing:
        refuse_other(data_config, folder, "hdf5")
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}; name the folder that the original's "
            "preprocessing wrote"
        )
    path = folder / IMAGES
    files = _names(folder / NAMES)
    labels = _labels(path, files)
    num_classes = data_config.num_classes
    if num_classes is None:
        num_classes = max(labels) + 1
    for file, label in zip(files, labels, strict=True):
        check_label(label, num_classes, f"{path}, {file}")
    source = Hdf5Source(
        name=str(folder),
        num_classes=num_classes,
        files=tuple(files),
        labels=np.asarray(labels, np.int32),
        path=str(path),
        resolution=data_config.resolution,
    )
    _check_first(source, data_config)
    return source


def _names(path: pathlib.Path) -> list[str]:
    """The sorted names of images; the file also lists groups and other entries."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not JSON ({reason}); write it anew from {IMAGES}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: not a list of names; write it anew from {IMAGES}")
    left_out = LeftOut()
    images = []
    for name in sorted(names):
        if name.lower().endswith((*SUFFIXES, ".npy")):
            images.append(name)
        elif os.path.splitext(name)[1] and name != LABELS:  # groups have no suffix
            left_out.add(kind_of(name), name)
    left_out.say(path)
    if not images:
        raise UserError(f"{path}: names no images; write it anew from {IMAGES}")
    _check_once(path, images)
    return images


def _labels(path: pathlib.Path, files: Sequence[str]) -> list[int]:
    """The label of each file, from the list in the HDF5 file."""
    where = f"{path}, {LABELS}"
    with _open_file(path) as file:
        limit = max(_SMALL, path.stat().st_size)
        content = _bytes(_entry(file, LABELS, where, limit), where)
    try:
        content = json.loads(content)
        pairs = [(os.fspath(name), label) for name, label in content["labels"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{where}: not {{"labels": [[name, label], ...]}} ({type(error).__name__}: '
            f"{first_line(error)}); prepare the images anew"
        ) from error
    _check_once(where, (name for name, _ in pairs))
    by_name = dict(pairs)
    return [_label(where, by_name, name) for name in files]


def _label(where: str, labels: Mapping[str, int], name: str) -> int:
    label = labels.get(name.replace("\\", "/"))
    if not isinstance(label, int) or isinstance(label, bool) or label >= 1 << 31:
        raise UserError(
            f"{where}: the label of {name} is {label!r}, not a class's number; "
            "prepare the images anew, from one folder a class"
        )
    return label


def _check_once(where: typing.Any, names: Iterable[str]) -> None:
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: names {twice[0]} more than once; remove the repetition")


def _check_first(source: Hdf5Source, data_config: typing.Any) -> None:
    """Raise UserError, before anything is built, if the first image has another resolution."""
    with contextlib.suppress(BadImage):  # reported or skipped when the image is read
        try:
            source[0]
        except WrongSize as error:
            raise UserError(
                f"{key_name(data_config, 'resolution')} is {source.resolution}, but "
                f"{source.image_name(0)} has {error.width} x {error.height} pixels: set "
                f"{setting(data_config, 'resolution', error.width)}, or prepare the images anew"
            ) from error


def _open_file(path) -> h5py.File:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} needs h5py to be read; run: pip install h5py") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path}: not a readable HDF5 file ({first_line(error)}); copy or prepare it anew"
        ) from error


def _entry(file: h5py.File, key: str, name: str, limit: int) -> np.ndarray:
    """The entry stored under `key`; byte strings of fixed length keep their trailing zeros.

    Args:
      file: the open file.
      key: the entry's name in it.
      name: the entry's name in messages.
      limit: the most bytes that the entry may have.

    Raises:
      UserError: the entry is missing, damaged, stored in another file, or too large.
    """
    import h5py

    try:
        entry = file.get(key)
    except RuntimeError as error:  # a cycle of links
        raise UserError(
            f"{name}: cannot be found ({first_line(error)}); copy the file anew"
        ) from error
    if not isinstance(entry, h5py.Dataset):
        raise UserError(f"{name}: not in the file; copy it and its list of names anew")
    if entry.file.filename != file.filename or entry.external or entry.is_virtual:
        raise UserError(
            f"{name}: its values lie in another file, which this one names; store them in this one"
        )
    if entry.nbytes > limit:
        raise UserError(f"{name}: {entry.nbytes:,} bytes are too many; prepare the images anew")
    try:
        return np.asarray(entry)
    except (OSError, ValueError, TypeError) as error:  # TypeError: an entry without a shape
        raise UserError(
            f"{name}: cannot be read ({first_line(error)}); copy the file anew"
        ) from error


def _bytes(entry: np.ndarray, name: str) -> bytes:
    if entry.dtype.kind != "O":
        return entry.tobytes()
    try:
        return bytes(entry.item())  # a byte string of variable length
    except (ValueError, TypeError) as error:
        raise BadImage(f"{name}: {entry.dtype} {entry.shape} is no byte string") from error


def _pixels(entry: np.ndarray, name: str) -> np.ndarray:
    """Stored pixels (3, H, W), the original's order, as (H, W, 3)."""
    if entry.ndim < 2 or not entry.size:
        raise BadImage(f"{name}: {entry.dtype} {entry.shape} is not uint8 (3, H, W)")
    return entry.reshape(-1, *entry.shape[-2:]).transpose(1, 2, 0)
