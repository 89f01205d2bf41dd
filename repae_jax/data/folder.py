"""Images in class folders: one folder per class, named like the class; it may have subfolders."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from repae_jax.data.crop import RandomWindow
from repae_jax.data.decode import decode_cropped, read_beginning, read_file
from repae_jax.data.identity import Fingerprint, class_table
from repae_jax.data.kinds import refuse_other
from repae_jax.data.source import key_name, split_folder
from repae_jax.data.walk import SUFFIXES, Walk, warn_once
from repae_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files in class folders, decoded on access.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      classes: the class folders' names, in the order of the labels.
      files: paths relative to `root`.
      labels: int32 (N,).
      root: the folder that holds the class folders.
      resolution: pixels along a side of the crops.
      exif: whether pictures are turned by their EXIF orientation.
      crop: a key of `crop.CROPS`.
    """

    name: str
    num_classes: int
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    root: str
    resolution: int
    exif: bool = False
    crop: str = "adm"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.read(index)

    def read(self, index: int, window: RandomWindow | None = None) -> dict[str, np.ndarray]:
        path = self.image_name(index)
        image = decode_cropped(
            read_file(path), self.resolution, path, exif=self.exif, crop=self.crop, window=window
        )
        return {"image": image, "label": np.int32(self.labels[index])}

    def image_name(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    def fingerprint(self) -> Fingerprint:
        names = [name.partition(os.sep)[2] for name in self.files]  # relative to the class folder
        table = class_table(
            names, self.labels, self.classes, lambda index: read_beginning(self.image_name(index))
        )
        return {"source": "folder", "count": len(self), "classes": table}


def open_folder(data_config: typing.Any, split: str) -> FolderSource:
    """Open the class folders of a split; the order of their sorted names gives the labels.

    Pictures in subfolders of a class folder belong to that class (see `Walk`). A warning lists the
    files that are no pictures and are left out.

    Args:
      data_config: its `path` holds class folders, or the folders `train` and `heldout` with class
        folders.
      split: "train" or "heldout"; "train" may be `path` itself.

    Raises:
      UserError: the folder does not exist, a folder cannot be read, a class has no images, or two
        files or classes have names that differ only in case.
    """
    root = split_folder(
        data_config.path,
        split,
        _has_folders,
        "class folders",
        called=key_name(data_config, "path"),
    )
    walk = Walk(root)
    classes = walk.folders()
    if not classes:
        refuse_other(data_config, root, "folder")
        raise UserError(f"{root} has no class folders; put each class's images in a folder there")
    _check_case(root, classes)
    files, labels = [], []
    for label, name in enumerate(classes):
        found = walk.pictures(name)
        if not found:
            refuse_other(data_config, root, "folder")
            raise UserError(
                f"class folder {root / name} has no images ({', '.join(SUFFIXES)}); "
                "add some, or move the folder elsewhere"
            )
        _check_case(root, found)
        files += found
        labels += [label] * len(found)
    walk.left_out.say(root)
    _warn_of_another_level(root, files)
    return FolderSource(
        name=str(root),
        num_classes=len(classes),
        classes=tuple(classes),
        files=tuple(files),
        labels=np.asarray(labels, np.int32),
        root=str(root),
        resolution=data_config.resolution,
        exif=getattr(data_config, "exif", False),
        crop=getattr(data_config, "crop", "adm"),
    )


def _warn_of_another_level(root, files):
    """Warn if all pictures lie in subfolders, which may be the intended classes."""
    if all(file.count(os.sep) > 1 for file in files):
        warn_once(
            f"{root}: all pictures lie in subfolders of its folders, such as {files[0]}; each of "
            "its folders is one class: if the subfolders are the classes, name the folder that "
            "holds them"
        )


def _check_case(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Raise UserError for two names that differ only in case.

    File systems that ignore case (macOS, Windows, some network disks) would silently drop one of
    them in a copy, so the same data set would have other images or labels. Names with different
    suffixes are distinct everywhere.
    """
    seen = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{folder} holds both {other} and {name}, which are one name where case does not "
                "count; rename or remove one"
            )


def _has_folders(root: pathlib.Path) -> bool:
    return bool(Walk(root).folders())
