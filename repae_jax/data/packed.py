"""Packed images: images that `prepare` has cropped and written to shards."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repae_jax.data.caption_texts import KEPT, Captions, as_tuple, captions_in
from repae_jax.data.crop import RandomWindow, rgb_square
from repae_jax.data.decode import decode_pixels
from repae_jax.data.identity import Fingerprint
from repae_jax.data.kinds import refuse_other
from repae_jax.data.manifest import BEGUN, MANIFEST, manifest_fingerprint, read_manifest
from repae_jax.data.shards import PackedRecords
from repae_jax.data.source import check_label, key_name, setting, split_folder
from repae_jax.errors import UserError

KIND = "images"


@dataclasses.dataclass(frozen=True, eq=False)
class PackedSource:
    """Packed images, decoded on access.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      records: index -> {"image": encoded bytes, "label": int, "name": str}, and captions (see
        `caption_texts.caption_entries`) if the manifest says so.
      resolution: pixels along a side of the images.
      manifest: the folder's manifest. Its squares may be larger than `resolution`, for random
        crops; an element is then the whole square, resized by the rule of its own crop.
    """

    name: str
    num_classes: int
    records: PackedRecords
    resolution: int
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | Captions]:
        return self.read(index)

    def read(
        self, index: int, window: RandomWindow | None = None
    ) -> dict[str, np.ndarray | Captions]:
        record, made = self.records[index], self.manifest["made"]
        name = f"{self.image_name(index)} ({record['name']})"
        image = decode_pixels(record["image"], made["resolution"], name)
        if window is not None or len(image) != self.resolution:
            image = _crop(image, self.resolution, made.get("crop", "adm"), window)
        label = check_label(record["label"], self.num_classes, name)
        element = {"image": image, "label": label}
        if made.get(KEPT):
            element["caption"] = captions_in(record, name)
        return element

    @property
    def caption(self) -> Callable[[int], str] | None:
        """index -> the image's first caption; None without captions."""
        return self._caption if self.manifest["made"].get(KEPT) else None

    def image_name(self, index: int) -> str:
        return self.records.record_name(index)

    def fingerprint(self) -> Fingerprint:
        return manifest_fingerprint(self.manifest)

    def _caption(self, index):
        return as_tuple(captions_in(self.records[index], self.image_name(index)))[0]


def open_packed(data_config: typing.Any, split: str) -> PackedSource:
    """Open a folder that `prepare` wrote.

    Args:
      data_config: its `path` is the folder, or holds prepared folders `train` and `heldout`. With
        `random_crop`, the resolution of "train" is this one, and any other split's may be.
      split: "train" or "heldout"; "train" may be `path` itself.

    Raises:
      UserError: the folder is missing, damaged, or holds other data; or it was prepared with
        another resolution or another value of `data.exif`.
    """
    folder = packed_folder(data_config, split, "packed")
    manifest = read_manifest(folder)
    _check(folder, manifest, data_config, split)
    return PackedSource(
        name=str(folder),
        num_classes=manifest["num_classes"],
        records=PackedRecords(folder),
        resolution=data_config.resolution,
        manifest=manifest,
    )


def packed_folder(data_config: typing.Any, split: str, wanted: str) -> pathlib.Path:
    """The folder of a split's shards (see `split_folder`), which may be unfinished.

    Args:
      data_config: its `path` is the folder, or holds packed folders `train` and `heldout`.
      split: "train" or "heldout".
      wanted: "packed" or "latents".

    Raises:
      UserError: the folder is missing, or holds another kind of data.
    """

    def holds(folder):
        return (folder / MANIFEST).exists() or (folder / BEGUN).exists()

    folder = split_folder(data_config.path, split, holds, "packed records")
    if not holds(folder):
        refuse_other(data_config, folder, wanted)
    return folder


def _crop(pixels, size, crop, window):
    from PIL import Image

    return rgb_square(Image.fromarray(pixels), size, crop=crop, window=window)


def _check(folder, manifest, data_config, split):
    if manifest["kind"] != KIND:
        raise UserError(
            f"{folder} holds packed {manifest['kind']}, not images: set "
            f"{setting(data_config, 'source', manifest['kind'])}, or name a folder that "
            "`python -m repae_jax prepare` wrote"
        )
    keys = {"resolution": None, "exif": False, "crop": "adm"}
    if larger := getattr(data_config, "random_crop", 0):
        made = manifest["made"].get("resolution", 0)
        if split == "train":
            _check_random_crop(folder, made, larger, data_config.resolution)
        if made == larger:
            del keys["resolution"]
    for key, default in keys.items():
        wanted, made = getattr(data_config, key, default), manifest["made"].get(key, default)
        if wanted != made:
            raise UserError(
                f"{key_name(data_config, key)} is {wanted}, but {folder} was prepared with {made}; "
                f"set {setting(data_config, key, made)}, or prepare it anew"
            )


def _check_random_crop(folder, made, random_crop, resolution):
    if made == random_crop:
        return
    larger = f"--config.data.random_crop={made}, " if made > resolution else ""
    raise UserError(
        f"config.data.random_crop is {random_crop}, but {folder} was prepared with resolution "
        f"{made}: set {larger}--config.data.random_crop=0 for center crops, or prepare it anew "
        f"with --resolution {random_crop}"
    )
