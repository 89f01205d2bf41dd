"""Crops and encodes the images of a source once, and writes them as a packed data set.

Training then reads small images by index from a few large files, which suits every file system.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from repae_jax.data.caption_texts import KEPT, caption_entries
from repae_jax.data.identity import names_checksum
from repae_jax.data.images import encode_pixels
from repae_jax.data.packed import KIND
from repae_jax.data.shard_writer import ShardWriter, write_shards
from repae_jax.data.sources import ON_BAD_IMAGE, Source, open_source
from repae_jax.errors import BadImage, UserError
from repae_jax.utils.schema import Side, check_schema


def prepare(
    source: str,
    output: str | os.PathLike,
    *,
    resolution: int = 256,
    format: str = "raw",
    quality: int | None = None,
    split: str = "train",
    path: str = "",
    per_shard: int = 2048,
    workers: int = 0,
    exif: bool = False,
    crop: str = "adm",
    on_bad_image: str = "error",
    progress: bool = False,
) -> dict[str, Any]:
    """Write every image of a source, cropped to a square (see `crop`), as packed records.

    A record is {"image": an encoded file's bytes, "label": int, "name": the source's name of the
    image}, with the captions of a source that has them (see `caption_texts.caption_entries`). After
    a killed run, the same call writes the missing shards, and the result has the same bytes (see
    `shard_writer.write_shards`).

    Args:
      source: a folder of class folders, "tfds:NAME", "hdf5:FOLDER", "captions:FOLDER",
        "tars:FOLDER", "digits", "scenes:COUNT" or "described:COUNT".
      output: a new folder, or a folder that a call with the same arguments has begun.
      resolution: pixels along a side.
      format: "png", "webp", "raw" (lossless) or "jpeg" (see `images`).
      quality: 1 to 100; makes webp lossy; None is 95 for jpeg.
      split: "train", "heldout", or the source's own name of a split.
      path: the folder of TFDS' data sets, if not its default.
      per_shard: images in a shard.
      workers: number of processes that read, crop and encode; with 0 this process does.
      exif: turn pictures by their EXIF orientation.
      crop: the rule of the center crop, a key of `crop.CROPS`.
      on_bad_image: "error", or "skip": leave out images that cannot be decoded, and list them under
        "skipped" in the manifest.
      progress: show a progress bar.

    Returns:
      The manifest.

    Raises:
      UserError: invalid arguments, source, images or output folder; a full disk.
    """
    if format == "jpeg" and quality is None:
        quality = 95
    _check(resolution, format, quality, on_bad_image)
    kind, name, path = _parse(source, path)
    images = open_source(
        types.SimpleNamespace(
            source=kind,
            name=name,
            path=path,
            resolution=resolution,
            num_classes=None,  # the source's own
            exif=exif,
            crop=crop,
            on_bad_image=on_bad_image,
            options={
                "resolution": "--resolution",
                "exif": "--exif",
                "crop": "--crop",
                "on_bad_image": "--on-bad-image",
                "name": "SOURCE",
                "path": "--path" if kind == "tfds" else "SOURCE",
            },
        ),
        split,
        replace_bad_images=False,  # `_ImageWriter` leaves bad images out
    )
    made = {
        "source": kind,
        "name": name,
        "split": split,
        **identity_of(images),
        "resolution": resolution,
        "format": format,
        "quality": quality,
        "exif": exif,
        # data sets of before have neither of these entries
        **({} if crop == "adm" else {"crop": crop}),
        **({KEPT: True} if getattr(images, "caption", None) is not None else {}),
    }
    classes = getattr(images, "classes", None)
    return write_shards(
        output,
        len(images),
        per_shard,
        _ImageWriter(images, format, quality, on_bad_image == "skip"),
        made,
        manifest={
            "kind": KIND,
            "num_classes": images.num_classes,
            "classes": classes if classes is None else list(classes),
        },
        summarize=lambda notes: {"skipped": skipped_names(images, notes)},
        workers=workers,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _ImageWriter:
    """Writes images of a source as records; picklable, for other processes."""

    source: Source
    format: str
    quality: int | None
    skip: bool

    def __call__(self, indexes: range, writer: ShardWriter) -> Mapping[str, Any]:
        skipped = []
        for index in indexes:
            name = relative_name(self.source, index)
            try:
                element = self.source[index]
            except BadImage:
                if not self.skip:
                    raise
                skipped.append(name)
                continue
            image = encode_pixels(element["image"], self.format, self.quality)
            record = {"image": image, "label": int(element["label"]), "name": name}
            if "caption" in element:
                record |= caption_entries(element["caption"])
            writer.write(record)
        return {"skipped": skipped}


def _check(resolution, format, quality, on_bad_image):
    check_schema(resolution, Side, source="--resolution")
    if on_bad_image not in ON_BAD_IMAGE:
        raise UserError(f"--on-bad-image is {on_bad_image!r}: use one of {', '.join(ON_BAD_IMAGE)}")
    encode_pixels(np.zeros((1, 1, 3), np.uint8), format, quality)  # raises for a wrong format


def _parse(source, path):
    """The config's data.source, data.name and data.path for the command line's SOURCE."""
    kind, colon, rest = source.partition(":")
    if kind == "tfds" and colon:
        return "tfds", rest, path
    if path:
        raise UserError(f"--path is TFDS' data folder, but SOURCE is {source!r}; leave it out")
    if kind in ("hdf5", "captions", "tars") and colon:
        return kind, "", rest
    if source == "digits":
        return "digits", "", ""
    if kind in ("scenes", "described") and rest:
        return kind, rest, ""
    if not source or not pathlib.Path(source).is_dir():
        what = "which is no folder here" if source else "empty"
        known = "a folder of class folders, tfds:NAME, hdf5:FOLDER, digits or scenes:COUNT"
        known += "; with captions: captions:FOLDER, tars:FOLDER or described:COUNT"
        raise UserError(f"SOURCE is {source!r}, {what}: give {known}")
    return "folder", "", source


def relative_name(source: Source, index: int) -> str:
    """The source's name of an image, without the path of the source on this machine."""
    if not hasattr(source, "image_name"):
        return str(index)
    return _without_root(source, source.image_name(index))


def _without_root(source, name):
    return name.removeprefix(source.name).lstrip("/\\, ")


def skipped_names(source: Source, notes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all that a data set lacks: what the source left out, and each shard's "skipped".

    Args:
      source: the source of the images.
      notes: the results of `WriteShard`, in the order of the shards.
    """
    left_out = [_without_root(source, name) for name in getattr(source, "left_out", ())]
    return [*left_out, *(name for note in notes for name in note["skipped"])]


def identity_of(source: Source) -> dict[str, Any]:
    """Entries of `made` that identify the images of a source, independent of its path."""
    names = (relative_name(source, index) for index in range(len(source)))
    return {"names_sha256": names_checksum(names), "data": source.fingerprint()}
