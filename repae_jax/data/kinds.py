"""Detects the kind of data in a folder, for errors that name the data.source to set."""

from __future__ import annotations

import itertools
import pathlib
import typing
from typing import Any

from repae_jax.data.captions import METADATA
from repae_jax.data.manifest import BEGUN, MANIFEST
from repae_jax.data.source import setting
from repae_jax.data.walk import SUFFIXES
from repae_jax.errors import UserError
from repae_jax.interop import latent_shards
from repae_jax.utils.atomic_files import entries
from repae_jax.utils.schema import read_json

HDF5 = "images.h5"
_HOLDS = {  # config.data.source -> the content of its folder, in words
    "packed": "packed images",
    "latents": "cached latents",
    "hdf5": f"the original's {HDF5}",
    "tfds": "data sets of TFDS",
    "captions": "pictures with captions",
    "tars": "tars of pictures with captions",
    "folder": "class folders of pictures",
}
_LOOKED_AT = 100  # entries of a folder to look at; a folder may have millions


def source_of(folder: pathlib.Path) -> str | None:
    """The value of config.data.source that reads a folder; None for unknown content."""
    for name in (MANIFEST, BEGUN):
        if (folder / name).is_file():
            return "latents" if _kind(folder / name) == "latents" else "packed"
    if (folder / HDF5).is_file():
        return "hdf5"
    versions = ("dataset_info.json", *("*/" * depth + "dataset_info.json" for depth in (1, 2, 3)))
    if any(next(folder.glob(pattern), None) for pattern in versions):
        return "tfds"
    if (folder / METADATA).is_file():
        return "captions"
    if next(folder.glob("*.tar"), None) is not None:
        return "tars"
    inner = itertools.islice((folder / name for name in entries(folder)), _LOOKED_AT)
    return "folder" if any(_has_pictures(place) for place in inner if place.is_dir()) else None


def refuse_other(data_config: typing.Any, folder: pathlib.Path, wanted: str) -> None:
    """Raise UserError if a folder, or a folder in it, holds another kind of data than `wanted`.

    A folder of unknown content raises nothing.

    Args:
      data_config: the argument of `open_source`.
      folder: the folder, which does not hold `wanted`.
      wanted: a value of config.data.source.
    """
    if wanted == "latents" and latent_shards.files_in(folder):
        raise UserError(
            f"{folder} holds LightningDiT's cached latents: make a cache of them by "
            f"`python -m repae_jax convert {folder} CACHE --config FILE`, and set "
            f"{setting(data_config, 'path', 'CACHE')}"
        )
    places = (folder, *(folder / name for name in sorted(entries(folder))[:_LOOKED_AT]))
    for place in places:
        found = source_of(place) if place.is_dir() else None
        if found not in (None, wanted):
            raise UserError(
                f"{place} holds {_HOLDS[found]}, not {_HOLDS[wanted]}: "
                f"{_way_out(data_config, place, found)}, or name another folder"
            )


def _way_out(data_config, place, found):
    if not hasattr(data_config, "options"):
        return f"set {setting(data_config, 'source', found)}"
    if found in ("packed", "latents"):
        return "it is prepared already"
    return f"give {'' if found == 'folder' else f'{found}:'}{place}"


def _kind(path):
    try:
        return read_json(path, dict[str, Any]).get("kind")
    except UserError:
        return None  # damaged: its reader raises


def _has_pictures(folder):
    found = itertools.islice(entries(folder), _LOOKED_AT)
    return any(name.lower().endswith(SUFFIXES) for name in found)
