"""Images and labels by index, from the embedded digits, a folder or TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import typing

import numpy as np

from repae_jax.data import digits
from repae_jax.data.crop import rgb_square
from repae_jax.errors import UserError

if typing.TYPE_CHECKING:
    import tensorflow_datasets as tfds

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# What other people call the part that is not trained on, in the order of preference.
_HELDOUT_NAMES = ("heldout", "validation", "val", "test")


class Source(typing.Protocol):
    """Random access to labelled images, as `grain.MapDataset.source` wants it.

    Attributes:
      name: what to call the source in messages.
      num_classes: labels are 0..num_classes - 1.
    """

    name: str
    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One element: {"image": uint8 (H, W, 3), "label": int32 ()}."""
        ...


def open_source(data_config: typing.Any, split: str) -> Source:
    """The images that a config's data section names, cropped to its resolution.

    Args:
      data_config: has `source` ("digits", "folder" or "tfds"), `resolution` (pixels along a
        side), `num_classes`, and
        for "folder" a `path`: a folder of class folders whose sorted names are the labels; or
        one that holds `train` and `heldout` (or `validation`, `val`, `test`), each such a folder.
        for "tfds" a `name` (the builder's, config and version included) and a `path` (TFDS' data
        folder; empty for its default).
      split: "train", "heldout", or what the source itself calls a split.

    Raises:
      UserError: the source, split, folder or data set does not exist or is empty, or does not
        have the resolution or number of classes that the config says.
    """
    openers = {"digits": _open_digits, "folder": _open_folder, "tfds": _open_tfds}
    if data_config.source not in openers:
        raise UserError(f"data.source = {data_config.source!r}; choose one of {', '.join(openers)}")
    source = openers[data_config.source](data_config, split)
    _check_classes(source, data_config.num_classes)
    return source


def _check_classes(source, num_classes):
    if num_classes == source.num_classes:
        return
    trouble = "more labels than classes" if num_classes < source.num_classes else "unused classes"
    raise UserError(
        f"data.num_classes = {num_classes}, but {source.name} has {source.num_classes} classes "
        f"({trouble}); set data.num_classes = {source.num_classes}"
    )


# --- digits ---


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are in memory: uint8 (N, H, W, 3), labels int32 (N,)."""

    name: str
    num_classes: int
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": np.int32(self.labels[index])}


def _open_digits(data_config, split):
    if data_config.resolution != digits.RESOLUTION:
        raise UserError(
            f"data.resolution = {data_config.resolution}, but digits are "
            f"{digits.RESOLUTION} x {digits.RESOLUTION}; set data.resolution = {digits.RESOLUTION}"
        )
    part = digits.load_digits_split(split)
    return ArraySource("digits", digits.NUM_CLASSES, part.images, part.labels)


# --- a folder of class folders ---


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files in class folders, decoded when they are asked for."""

    name: str
    num_classes: int
    files: tuple[str, ...]  # relative to `root`
    labels: np.ndarray
    root: str
    resolution: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        path = os.path.join(self.root, self.files[index])
        return {
            "image": _decode(path, self.resolution, name=path),
            "label": np.int32(self.labels[index]),
        }


def _open_folder(data_config, split):
    root = _split_folder(data_config.path, split)
    classes = _visible_folders(root)
    if not classes:
        raise UserError(f"{root} has no class folders; put each class's images in a folder there")
    files, labels = [], []
    for label, name in enumerate(classes):
        names = sorted(
            entry.name
            for entry in os.scandir(root / name)
            if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".")
        )
        if not names:
            raise UserError(
                f"class folder {root / name} has no images ({', '.join(_SUFFIXES)}); "
                "add some or remove the folder"
            )
        files += [os.path.join(name, file) for file in names]
        labels += [label] * len(names)
    return FolderSource(
        name=str(root),
        num_classes=len(classes),
        files=tuple(files),
        labels=np.asarray(labels, np.int32),
        root=str(root),
        resolution=data_config.resolution,
    )


def _split_folder(path, split):
    """Where a split's class folders are: in `path/split`, or for "train" in `path` itself."""
    if not path or not pathlib.Path(path).is_dir():
        raise UserError(f"data.path = {path!r} is not a folder; name one that holds class folders")
    root = pathlib.Path(path)
    names = _HELDOUT_NAMES if split == "heldout" else (split,)
    for name in names:
        # a class may be called "train" as well, but then it holds no folders
        if (root / name).is_dir() and _visible_folders(root / name):
            return root / name
    if split == "train":
        return root
    raise UserError(
        f"{root} has no {' or '.join(names)} folder of class folders; add one "
        "(and a train folder beside it)"
    )


def _visible_folders(root):
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."
    )


def _decode(file, size, name):
    from PIL import Image

    try:
        with Image.open(file) as image:
            return rgb_square(image, size)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise UserError(f"{name}: not a readable image ({error}); repair or remove it") from error


# --- TensorFlow Datasets ---


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A TFDS data source whose images are still encoded, decoded when they are asked for."""

    name: str
    num_classes: int
    records: typing.Sequence
    resolution: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.records[index]
        name = f"{self.name}, image {index}"
        return {
            "image": _decode(io.BytesIO(record["image"]), self.resolution, name),
            "label": np.int32(record["label"]),
        }


def _open_tfds(data_config, split):
    import tensorflow_datasets as tfds

    builder = _tfds_builder(data_config.name, data_config.path or None)
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(f"data.name = {data_config.name!r} has no image and label; choose another")
    return TfdsSource(
        name=data_config.name,
        num_classes=label.num_classes,
        # still encoded, so that they are decoded and cropped as files in folders are
        records=_tfds_records(builder, split, {"image": tfds.decode.SkipDecoding()}),
        resolution=data_config.resolution,
    )


def _tfds_builder(name: str, folder: str | None) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name or "", data_dir=folder)
    except (ValueError, AssertionError) as error:  # an unknown name; an unknown version
        reason = str(error).splitlines()[0]
        where = folder or "TFDS' default folder"
        raise UserError(
            f"data.name = {name!r} is neither a TFDS data set nor prepared in {where} "
            f"({reason}); correct data.name or data.path"
        ) from error
    if not builder.info.splits:
        raise UserError(f"{name} is not in {builder.data_dir}; run: {_prepare(name, folder)}")
    formats = {kind.value for kind in builder.info.available_file_formats()}
    if formats.isdisjoint(("array_record", "parquet")):
        other = f"{folder or '~/tensorflow_datasets'}_array_record"
        raise UserError(
            f"{name} is stored as {', '.join(formats)} in {builder.data_dir}, which cannot be "
            f"read by index; set data.path = {other!r} and run: {_prepare(name, other)}"
        )
    return builder


def _prepare(name, folder):
    """The command that prepares a data set; the `tfds` tool would need apache_beam as well."""
    builder = f"tfds.builder({name!r}, data_dir={folder!r}, file_format='array_record')"
    script = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'python -c "{script}"'


def _tfds_records(builder, split, decoders):
    known = builder.info.splits
    if split == "heldout":
        split = next((name for name in _HELDOUT_NAMES if name in known), split)
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{builder.info.name} has no split {split!r}; choose one of {', '.join(known)}"
        ) from error
