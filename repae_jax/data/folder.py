"""Images in folders: one folder a class, its name the class's, with folders of its own or not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
from collections.abc import Sequence

import numpy as np

from repae_jax.data.decode import decode_cropped, read_beginning, read_file
from repae_jax.data.identity import Fingerprint, class_table
from repae_jax.data.kinds import refuse_other
from repae_jax.data.source import named, split_folder
from repae_jax.data.walk import SUFFIXES, Walk, warn_once
from repae_jax.errors import UserError


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
        table = class_table(
            names, self.labels, self.classes, lambda index: read_beginning(self.image_name(index))
        )
        return {"source": "folder", "count": len(self), "classes": table}


def open_folder(data_config: typing.Any, split: str) -> FolderSource:
    """The split's class folders; their sorted names are the labels.

    Pictures in folders of a class folder are of that class (see `Walk`); a line says what is no
    picture and left out.

    Args:
      data_config: its `path` holds class folders, or `train` and `heldout` folders that do.
      split: which of these; "train" may be `path` itself.

    Raises:
      UserError: there is no such folder, one cannot be read, a class has no images, or two files
        or classes have names that differ in upper and lower case only.
    """
    root = split_folder(
        data_config.path,
        split,
        _has_folders,
        "class folders",
        called=named(data_config, "path"),
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
    )


def _warn_of_another_level(root, files):
    """Where no class folder holds a picture itself, the next level's may be meant."""
    if all(file.count(os.sep) > 1 for file in files):
        warn_once(
            f"{root}: its folders hold no pictures but in folders of their own, such as "
            f"{files[0]}; all of those in one folder are of one class: if the inner folders are "
            "the classes, name the folder that holds these"
        )


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


def _has_folders(root: pathlib.Path) -> bool:
    return bool(Walk(root).folders())
