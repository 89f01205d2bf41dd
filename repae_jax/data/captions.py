"""Pictures in a folder with captions: a text beside each, or the lines of metadata.jsonl."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import typing

import numpy as np

from repae_jax.data.caption_texts import MOST_BYTES, Captions, as_tuple, decode_captions
from repae_jax.data.crop import RandomWindow
from repae_jax.data.decode import decode_cropped, read_beginning, read_file
from repae_jax.data.identity import Fingerprint, contents_checksums, names_checksum, sample
from repae_jax.data.source import key_name, setting, split_folder
from repae_jax.data.walk import Walk, warn_once
from repae_jax.errors import UserError, first_line
from repae_jax.utils.schema import short_repr, unrepeated

METADATA = "metadata.jsonl"  # Hugging Face's imagefolder
_FILE_NAME, _TEXT = "file_name", "text"
_MOST_LINE = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedSource:
    """Pictures of a folder and its subfolders with their captions, of one class.

    Attributes:
      name: the folder.
      files: paths relative to it.
      captions: the captions of each picture in `metadata.jsonl`; None reads the .txt beside it.
      resolution: pixels along a side of the crops.
      exif: whether pictures are turned by their EXIF orientation.
      crop: a key of `crop.CROPS`.
      left_out: the names of pictures without a caption, which `files` lacks.
    """

    name: str
    files: tuple[str, ...]
    captions: tuple[tuple[bytes, ...], ...] | None
    resolution: int
    exif: bool = False
    crop: str = "adm"
    num_classes: int = 1
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | Captions]:
        return self.read(index)

    def read(
        self, index: int, window: RandomWindow | None = None
    ) -> dict[str, np.ndarray | Captions]:
        path = self.image_name(index)
        image = decode_cropped(
            read_file(path), self.resolution, path, exif=self.exif, crop=self.crop, window=window
        )
        return {"image": image, "label": np.int32(0), "caption": self._captions(index)}

    def caption(self, index: int) -> str:
        return as_tuple(self._captions(index))[0]

    def image_name(self, index: int) -> str:
        return os.path.join(self.name, self.files[index])

    def fingerprint(self) -> Fingerprint:
        few = sample(len(self))
        pictures = contents_checksums([few], lambda i: read_beginning(self.image_name(i)))
        texts = contents_checksums([few], lambda i: b"\0".join(self._stored(i)))
        return {
            "source": "captions",
            "count": len(self),
            "names": names_checksum(self.files),
            "pictures": pictures[0],
            "captions": texts[0],
        }

    def _captions(self, index):
        return decode_captions(self._stored(index), self.image_name(index))

    def _stored(self, index):
        """The bytes of an image's captions."""
        if self.captions is not None:
            return self.captions[index]
        return (read_file(str(_text_beside(self.image_name(index))), MOST_BYTES + 1),)


def open_captioned(data_config: typing.Any, split: str) -> CaptionedSource:
    """Open a folder of pictures with captions.

    The captions are those of `metadata.jsonl` in the folder, one line a picture with `file_name`
    and `text` (Hugging Face's imagefolder), a string or a list of several; or the one of a .txt of
    the picture's name beside it.

    Args:
      data_config: its `path` is the folder, or holds folders `train` and `heldout` of that kind;
        with `on_bad_image` "skip", pictures without a .txt are left out with a warning.
      split: "train" or "heldout".

    Raises:
      UserError: there are no pictures, a picture has no caption, or the metadata are damaged.
    """
    root = split_folder(
        data_config.path, split, _holds_pictures, "pictures with captions",
        called=key_name(data_config, "path"),
    )  # fmt: skip
    left_out = []
    if (root / METADATA).is_file():
        files, captions = _from_metadata(root / METADATA)
    else:
        captions, (files, left_out) = None, _with_texts(root, data_config)
    exif, crop = getattr(data_config, "exif", False), getattr(data_config, "crop", "adm")
    return CaptionedSource(
        str(root), files, captions, data_config.resolution, exif, crop, left_out=tuple(left_out)
    )


def _from_metadata(path):
    """The pictures and captions that a `metadata.jsonl` lists, in its order."""
    files, captions = [], []
    for number, line in enumerate(read_file(str(path)).splitlines(), start=1):
        if not line.strip():
            continue
        entry = _entry(line, f"{path}, line {number}")
        files.append(entry[_FILE_NAME])
        texts = entry[_TEXT] if isinstance(entry[_TEXT], list) else [entry[_TEXT]]
        captions.append(tuple(text.encode("utf-8", "surrogatepass") for text in texts))
    if not files:
        raise UserError(f"{path} lists no picture: each line is {_example()}")
    if len(set(files)) < len(files):
        twice, _ = collections.Counter(files).most_common(1)[0]
        raise UserError(f"{path} lists {twice!r} more than once: keep one of the lines")
    return tuple(files), tuple(captions)


def _entry(line, source):
    try:
        if len(line) > _MOST_LINE:
            raise ValueError(f"{len(line):,} bytes")
        entry = json.loads(line, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is no JSON ({first_line(error)}): each line is {_example()}"
        ) from error
    if not (
        isinstance(entry, dict) and isinstance(entry.get(_FILE_NAME), str) and _has_text(entry)
    ):
        raise UserError(
            f"{source} is {short_repr(entry)}: each line is {_example()}, or has a list of several "
            f"strings as its {_TEXT}"
        )
    name = pathlib.PurePosixPath(entry[_FILE_NAME])
    if not name.name or "\0" in entry[_FILE_NAME] or not _can_be_encoded(entry[_FILE_NAME]):
        raise UserError(f"{source}: {_FILE_NAME} {entry[_FILE_NAME]!r} names no file: correct it")
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{source}: {_FILE_NAME} {entry[_FILE_NAME]!r} lies outside of the folder")
    return entry | {_FILE_NAME: str(name)}  # without "./", so that a picture has one name


def _has_text(entry):
    texts = entry.get(_TEXT)
    texts = texts if isinstance(texts, list) else [texts]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _can_be_encoded(name):
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _example():
    return json.dumps({_FILE_NAME: "a/1.jpg", _TEXT: "a red disc"})


def _with_texts(root, data_config):
    """The pictures below a folder with a .txt of their name beside them, and the paths of others.

    Raises UserError for pictures without one, unless they are to be skipped.
    """
    files = Walk(root).pictures("")
    lacking = [name for name in files if not _text_beside(root / name).is_file()]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        what = f"{root / lacking[0]} has no caption{more}"
        if getattr(data_config, "on_bad_image", "error") != "skip":
            raise UserError(
                f"{what}: write it to {_text_beside(lacking[0]).name} beside it, write all of them "
                f"to {root / METADATA}, or leave such pictures out with "
                f"{setting(data_config, 'on_bad_image', 'skip')}"
            )
        warn_once(f"left out: {what}")
        without = set(lacking)
        files = [name for name in files if name not in without]
    if not files:
        raise UserError(f"{root} holds no pictures with captions, in {METADATA} or a .txt beside")
    return tuple(files), [str(root / name) for name in lacking]


def _text_beside(picture):
    return pathlib.Path(picture).with_suffix(".txt")


def _holds_pictures(root):
    return (root / METADATA).is_file() or bool(Walk(root).pictures(""))
