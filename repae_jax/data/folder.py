"""Images in folders: one folder a class, its name the class's."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from repae_jax.data.decode import decode_cropped, read_file
from repae_jax.data.identity import Fingerprint, class_table
from repae_jax.data.source import split_folder
from repae_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files in class folders, decoded when they are asked for.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      classes: the class folders' names, in the order of the labels.
      files: paths relative to `root`.
      labels: int32 (N,).
      root: the folder that holds the class folders.
      resolution: pixels along a side of the crops.
      exif: whether pictures are turned as their EXIF data say.
    """

    name: str
    num_classes: int
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    root: str
    resolution: int
    exif: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = self.image_name(index)
        image = decode_cropped(read_file(path), self.resolution, path, exif=self.exif)
        return {"image": image, "label": np.int32(self.labels[index])}

    def image_name(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    def fingerprint(self) -> Fingerprint:
        names = [name.partition(os.sep)[2] for name in self.files]  # in the class's folder
        table = class_table(names, self.labels, self.classes)
        return {"source": "folder", "count": len(self), "classes": table}


def open_folder(data_config: typing.Any, split: str) -> FolderSource:
    """The split's class folders; their sorted names are the labels.

    Args:
      data_config: its `path` holds class folders, or `train` and `heldout` folders that do.
      split: which of these; "train" may be `path` itself.

    Raises:
      UserError: there is no such folder, a class has no images, or two files or classes have
        names that differ in upper and lower case only.
    """
    root = split_folder(data_config.path, split, _visible_folders, "class folders")
    classes = _visible_folders(root)
    if not classes:
        raise UserError(f"{root} has no class folders; put each class's images in a folder there")
    _check_case(root, classes)
    files, labels = [], []
    for label, name in enumerate(classes):
        names = _images(root / name)
        files += [os.path.join(name, file) for file in names]
        labels += [label] * len(names)
    return FolderSource(
        name=str(root),
        num_classes=len(classes),
        classes=tuple(classes),
        files=tuple(files),
        labels=np.asarray(labels, np.int32),
        root=str(root),
        resolution=data_config.resolution,
        exif=getattr(data_config, "exif", False),
    )


def _images(folder: pathlib.Path) -> list[str]:
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )
    if not names:
        raise UserError(
            f"class folder {folder} has no images ({', '.join(SUFFIXES)}); "
            "add some or remove the folder"
        )
    _check_case(folder, names)
    return names


def _check_case(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Raise UserError for two names that are one where case does not count.

    There (macOS, Windows, some network disks) one of them would be lost in a copy without a
    word, and the same data set would have other images or labels. Names that differ in their
    suffix are two names everywhere.
    """
    seen = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{folder} holds both {other} and {name}, which are one name where case does not "
                "count; rename or remove one"
            )


def _visible_folders(root: pathlib.Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."
    )
