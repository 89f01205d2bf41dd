"""Reads prepared data sets of TensorFlow Datasets (TFDS) by index."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Callable

import numpy as np

from repae_jax.data.caption_texts import Captions, as_tuple, decode_captions
from repae_jax.data.crop import RandomWindow
from repae_jax.data.decode import decode_cropped
from repae_jax.data.identity import Fingerprint, contents_checksums, sample
from repae_jax.data.source import HELDOUT_NAMES, check_label, key_name, setting
from repae_jax.errors import UserError, first_line
from repae_jax.interop.downloads import DATA
from repae_jax.utils.schema import read_json

if typing.TYPE_CHECKING:
    import tensorflow_datasets as tfds

_SAMPLE = 3  # records per class, on average, in the fingerprint
_CAPTIONS = ("captions", "caption", "text", "texts")  # features of captions, and their keys
_OWN = "tensorflow_datasets."
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # keys of features.json, old and new


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A TFDS data set with encoded images, decoded on access, and labels, captions or both.

    Attributes:
      name: the builder's name.
      num_classes: labels are 0..num_classes - 1.
      records: index -> {"image": encoded bytes, "label": int, ...}.
      resolution: pixels along a side of the crops.
      exif: whether pictures are turned by their EXIF orientation.
      crop: a key of `crop.CROPS`.
      classes: the classes' names, in the order of the labels.
      release: the builder's name with config and version.
      text: the keys of a record that lead to its captions, such as ("captions", "text"); () without
        captions.
      labeled: whether records have labels; otherwise all images are of one class.
    """

    name: str
    num_classes: int
    records: typing.Sequence
    resolution: int
    exif: bool = False
    crop: str = "adm"
    classes: tuple[str, ...] | None = None
    release: str = ""
    text: tuple[str, ...] = ()
    labeled: bool = True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | Captions]:
        return self.read(index)

    def read(
        self, index: int, window: RandomWindow | None = None
    ) -> dict[str, np.ndarray | Captions]:
        record, name = self.records[index], self.image_name(index)
        image = decode_cropped(
            record["image"], self.resolution, name, exif=self.exif, crop=self.crop, window=window
        )
        label = check_label(self._label(record), self.num_classes, name)
        element = {"image": image, "label": label}
        if self.text:
            element["caption"] = decode_captions(self._stored_captions(record), name)
        return element

    @property
    def caption(self) -> Callable[[int], str] | None:
        """index -> the image's first caption; None without captions."""
        return self._caption if self.text else None

    def image_name(self, index: int) -> str:
        return f"{self.name}, image {index}"

    def fingerprint(self) -> Fingerprint:
        (content,) = contents_checksums(
            [sample(len(self), _SAMPLE * self.num_classes)], self._content
        )
        return {
            "source": "tfds",
            "name": self.release,
            "count": len(self),
            "classes": list(self.classes or ()),
            "content": content,
            **self._captions_fingerprint(),
        }

    def _content(self, index):
        record = self.records[index]
        return b"%d " % self._label(record) + record["image"]

    def _captions_fingerprint(self):
        if not self.text:
            return {}

        def content(index):
            return b"\0".join(self._stored_captions(self.records[index]))

        (captions,) = contents_checksums([sample(len(self))], content)
        return {"captions": captions}

    def _label(self, record):
        return record["label"] if self.labeled else 0

    def _caption(self, index):
        stored = self._stored_captions(self.records[index])
        return as_tuple(decode_captions(stored, self.image_name(index)))[0]

    def _stored_captions(self, record):
        """The bytes of a record's captions."""
        for key in self.text:
            record = record[key]
        return [bytes(text) for text in np.atleast_1d(np.asarray(record, object))]


def open_tfds(data_config: typing.Any, split: str) -> TfdsSource:
    """Open a split of a prepared TFDS data set.

    Args:
      data_config: has `name` (the builder's name with config and version) and `path` (TFDS' data
        folder; empty for its default).
      split: "train", "heldout", or a split in TFDS' notation.

    Raises:
      UserError: the data set or split does not exist, cannot be read by index, or has neither
        labels nor captions.
    """
    import tensorflow_datasets as tfds

    builder = _builder(data_config)
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    labeled, text = isinstance(label, tfds.features.ClassLabel), _text_of(features)
    if not isinstance(image, tfds.features.Image) or not (labeled or text):
        raise UserError(
            f"{key_name(data_config, 'name')} is {data_config.name!r}, which has no image and "
            f"label, nor an image with text that is called {' or '.join(_CAPTIONS)}; choose another"
        )
    return TfdsSource(
        name=data_config.name,
        num_classes=label.num_classes if labeled else 1,
        # encoded images, to be decoded and cropped like files in folders
        records=_records(builder, split, {"image": tfds.decode.SkipDecoding()}),
        resolution=data_config.resolution,
        exif=getattr(data_config, "exif", False),
        crop=getattr(data_config, "crop", "adm"),
        classes=tuple(label.names) if labeled else None,
        release=builder.info.full_name,
        text=text,
        labeled=labeled,
    )


def _text_of(features):
    """The keys that lead to the captions of a record: (name,) or, in a group, (name, key); or ().

    Captions are a `Text`, or a sequence of them, whose own name or whose group's is one of
    `_CAPTIONS`; other texts may be names of files.
    """
    import tensorflow_datasets as tfds

    for name in _CAPTIONS:
        feature = features.get(name)
        feature = getattr(feature, "feature", feature)  # of a sequence, its elements'
        if isinstance(feature, tfds.features.Text):
            return (name,)
        for key in _CAPTIONS if isinstance(feature, tfds.features.FeaturesDict) else ():
            if key in feature and isinstance(feature[key], tfds.features.Text):
                return (name, key)
    return ()


def _builder(data_config: typing.Any) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    name, folder = data_config.name or "", data_config.path or None
    _check_features(name, folder)
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (ValueError, AssertionError) as error:  # an unknown name, an unknown version
        reason = first_line(error)
        where = folder or "TFDS' default folder"
        raise UserError(
            f"{key_name(data_config, 'name')} is {name!r}, which is neither a TFDS data set nor "
            f"prepared in {where} ({reason}); correct it or {key_name(data_config, 'path')}"
        ) from error
    if not builder.info.splits:
        found = DATA.get(name)
        published = f": {found.what}, {found.published}" if found else ""
        raise UserError(
            f"{name} is not in {builder.data_dir} ({setting(data_config, 'path', 'PATH')} sets "
            f"TFDS's folder){published}; run: {_prepare(name, folder)}"
        )
    formats = {kind.value for kind in builder.info.available_file_formats()}
    if formats.isdisjoint(("array_record", "parquet")):
        other = f"{folder or '~/tensorflow_datasets'}_array_record"
        raise UserError(
            f"{name} is stored as {', '.join(formats)} in {builder.data_dir}, which cannot be "
            f"read by index; set {setting(data_config, 'path', other)} and run: "
            f"{_prepare(name, other)}"
        )
    return builder


def _check_features(name: str, folder: str | None) -> None:
    """Raise UserError if a data set's features.json names Python classes outside of TFDS.

    TFDS would import them, and so run any module in the data folder.
    """
    from tensorflow_datasets.core import constants, naming

    try:
        parsed, _ = naming.parse_builder_name_kwargs(name)
    except ValueError:
        return  # `tfds.builder` says why
    place = pathlib.Path(folder or constants.DATA_DIR).expanduser() / parsed.name
    for path in sorted(place.rglob("features.json")):
        foreign = [kind for kind in _classes(read_json(path)) if not kind.startswith(_OWN)]
        if foreign:
            raise UserError(
                f"{path}: names {foreign[0]}, a class that is not TFDS' own and would be imported; "
                "prepare the data set with TFDS' features"
            )


def _classes(value):
    """The names of Python classes in the content of a features.json, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            names = (value.get(key) for key in _CLASS_KEYS)
            yield from (name for name in names if isinstance(name, str) and "." in name)


def _prepare(name, folder):
    """The command that prepares a data set; the `tfds` tool would also need apache_beam."""
    builder = f"tfds.builder({name!r}, data_dir={folder!r}, file_format='array_record')"
    script = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'python -c "{script}"'


def _records(builder, split, decoders):
    known = builder.info.splits
    if split == "heldout":
        split = next((name for name in HELDOUT_NAMES if name in known), split)
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{builder.info.name} has no split {split!r}; choose one of {', '.join(known)}"
        ) from error
