"""Images that `prepare` has cropped and packed into shards."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.data.decode import decode_pixels
from repae_jax.data.identity import Fingerprint
from repae_jax.data.kinds import refuse_other
from repae_jax.data.manifest import BEGUN, MANIFEST, manifest_fingerprint, read_manifest
from repae_jax.data.shards import PackedRecords
from repae_jax.data.source import checked_label, named, setting, split_folder
from repae_jax.errors import UserError

KIND = "images"


@dataclasses.dataclass(frozen=True, eq=False)
class PackedSource:
    """Packed images, decoded when they are asked for.

    Attributes:
      name: the folder.
      num_classes: labels are 0..num_classes - 1.
      records: by index {"image": encoded bytes, "label": int, "name": str}.
      resolution: pixels along a side of the images.
      manifest: what the folder says of itself.
    """

    name: str
    num_classes: int
    records: PackedRecords
    resolution: int
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.records[index]
        name = f"{self.image_name(index)} ({record['name']})"
        return {
            "image": decode_pixels(record["image"], self.resolution, name),
            "label": checked_label(record["label"], self.num_classes, name),
        }

    def image_name(self, index: int) -> str:
        return self.records.record_name(index)

    def fingerprint(self) -> Fingerprint:
        return manifest_fingerprint(self.manifest)


def open_packed(data_config: typing.Any, split: str) -> PackedSource:
    """The images of a folder that `prepare` wrote.

    Args:
      data_config: its `path` is such a folder, or holds `train` and `heldout` folders that are.
      split: which of these; "train" may be `path` itself.

    Raises:
      UserError: there is no such folder; it is damaged or holds something else; it was prepared
        with another resolution, or otherwise than `data.exif` says.
    """
    folder = packed_folder(data_config, split, "packed")
    manifest = read_manifest(folder)
    _check(folder, manifest, data_config)
    return PackedSource(
        name=str(folder),
        num_classes=manifest["num_classes"],
        records=PackedRecords(folder),
        resolution=data_config.resolution,
        manifest=manifest,
    )


def packed_folder(data_config: typing.Any, split: str, wanted: str) -> pathlib.Path:
    """Where a split's shards lie (see `split_folder`), also if they are unfinished.

    Args:
      data_config: its `path` is such a folder, or holds `train` and `heldout` folders that are.
      split: which of these.
      wanted: "packed" or "latents".

    Raises:
      UserError: there is no such folder, or it holds another kind of data.
    """

    def holds(folder):
        return (folder / MANIFEST).exists() or (folder / BEGUN).exists()

    folder = split_folder(data_config.path, split, holds, "packed records")
    if not holds(folder):
        refuse_other(data_config, folder, wanted)
    return folder


def _check(folder, manifest, data_config):
    if manifest["kind"] != KIND:
        raise UserError(
            f"{folder} holds packed {manifest['kind']}, not images: set "
            f"{setting(data_config, 'source', manifest['kind'])}, or name a folder that "
            "`python -m repae_jax prepare` wrote"
        )
    for key, default in (("resolution", None), ("exif", False)):
        wanted, made = getattr(data_config, key, default), manifest["made"].get(key, default)
        if wanted != made:
            raise UserError(
                f"{named(data_config, key)} is {wanted}, but {folder} was prepared with {made}; "
                f"set {setting(data_config, key, made)}, or prepare it anew"
            )
