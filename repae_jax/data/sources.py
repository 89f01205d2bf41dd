"""Opens the source of labeled images that a configuration names."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from repae_jax.data import described, digits, scenes
from repae_jax.data.captions import open_captioned
from repae_jax.data.crop import CROPS
from repae_jax.data.folder import open_folder
from repae_jax.data.hdf5 import open_hdf5
from repae_jax.data.identity import Fingerprint, names_checksum
from repae_jax.data.latents import open_latents
from repae_jax.data.packed import open_packed, packed_folder
from repae_jax.data.skip_bad_images import SkippingSource
from repae_jax.data.source import Source, key_name, setting
from repae_jax.data.tars import open_tars
from repae_jax.data.tfds_source import open_tfds
from repae_jax.errors import UserError
from repae_jax.utils.schema import Count, as_whole, check_schema, short_repr

__all__ = ["ArraySource", "Source", "open_source"]

ON_BAD_IMAGE = ("error", "skip")
EMBEDDED = ("digits", "scenes", "described")  # sources without files
CROPPED = (*EMBEDDED, "hdf5", "latents")  # sources that hold no more than the images


def open_source(
    data_config: typing.Any,
    split: str,
    *,
    bad_images: str | pathlib.Path = "",
    any_classes: bool = False,
    replace_bad_images: bool = True,
) -> Source:
    """Open the source that a config's data section names, its images cropped to the resolution.

    Args:
      data_config: has `source`, `resolution` (pixels along a side), `num_classes` (None: the
        source's own number), and the keys of its kind of source:
        "folder": `path`, a folder of class folders whose sorted names give the labels;
        "packed": `path`, a folder that `prepare` wrote;
        "latents": `path`, a folder that `encode` wrote, and `flip`;
        "hdf5": `path`, a folder that the original's preprocessing wrote;
        "tfds": `name` (the builder's name with config and version) and `path` (TFDS' data folder;
        empty for its default);
        "digits": no keys;
        "scenes": `name`, the number of images (empty: `scenes.COUNTS`);
        "described": the same, of images with captions;
        "captions": `path`, a folder of pictures with captions;
        "tars": `path`, a folder of tars of pictures with captions.
        Except for TFDS, `path` may instead hold the folders `train` and `heldout` (or `validation`,
        `val`, `test`) of that kind.
        Optional keys are `exif` (turn pictures by their EXIF orientation; default False), `crop` (a
        rule of the center crop, a key of `crop.CROPS`; default "adm"), `random_crop` (the shorter
        side of pictures for random crops, see `train_batches`; default 0: none) and
        `on_bad_image` (default "error"; for "skip" see `SkippingSource`).
      split: "train", "heldout", or the source's own name of a split.
      bad_images: a file that lists skipped images; "": they are only logged.
      any_classes: accept any number of classes; the caller then uses `check_classes`.
      replace_bad_images: with `on_bad_image` "skip", another image takes the place of a bad one;
        False for a caller that leaves them out itself.

    Raises:
      UserError: the source, split, folder or data set does not exist, is empty or damaged, or has
        another resolution or number of classes than the config.
    """
    openers = {
        "digits": _open_digits,
        "scenes": _rendered("scenes", scenes.COUNTS, scenes.Scenes),
        "described": _rendered("described images", described.COUNTS, described.Described),
        "captions": open_captioned,
        "tars": open_tars,
        "folder": open_folder,
        "tfds": open_tfds,
        "packed": open_packed,
        "hdf5": open_hdf5,
        "latents": _open_latents,
    }
    if data_config.source not in openers:
        choices = ", ".join(openers)
        raise UserError(f"config.data.source is {data_config.source!r}: use one of {choices}")
    on_bad_image = getattr(data_config, "on_bad_image", "error")
    if on_bad_image not in ON_BAD_IMAGE:
        raise UserError(
            f"config.data.on_bad_image is {on_bad_image!r}: use one of {', '.join(ON_BAD_IMAGE)}"
        )
    crop = getattr(data_config, "crop", "adm")
    if crop not in CROPS:
        raise UserError(f"config.data.crop is {crop!r}: use one of {', '.join(CROPS)}")
    check_random_crop(data_config)
    source = openers[data_config.source](data_config, split)
    if not any_classes:
        check_classes(source, data_config.num_classes)
    skipping = on_bad_image == "skip" and replace_bad_images
    if skipping and data_config.source not in (*EMBEDDED, "latents"):
        return SkippingSource(source, str(bad_images))
    return source


def check_random_crop(data_config: typing.Any) -> None:
    """Raise UserError unless a data section's kind of source and sizes fit its `random_crop`."""
    side, source = getattr(data_config, "random_crop", 0), data_config.source
    if not side:
        return
    given, off = f"config.data.random_crop is {side}", "--config.data.random_crop=0"
    if source in CROPPED:
        raise UserError(
            f"{given}, but config.data.source {source!r} has nothing outside of its images to "
            f"crop: set {off}, or name a source of pictures (folder, tfds, captions, tars, packed)"
        )
    if side < (resolution := data_config.resolution):
        raise UserError(
            f"{given}, smaller than config.data.resolution {resolution}, the side of a crop: give "
            f"at least {resolution}, or set {off}"
        )
    if source == "packed" and side == resolution:
        raise UserError(
            f"{given}, which is config.data.resolution, but config.data.source 'packed' holds "
            f"squares, which have one crop of that side: set {off}, or name the pictures that they "
            "were made of"
        )


def check_classes(source: Source, num_classes: int | None) -> None:
    """Raise UserError unless a source has this number of classes; None accepts any number."""
    if num_classes is None or num_classes == source.num_classes:
        return
    trouble = "more labels than classes" if num_classes < source.num_classes else "unused classes"
    raise UserError(
        f"config.data.num_classes is {num_classes}, but {source.name} has {source.num_classes} "
        f"classes ({trouble}); set --config.data.num_classes={source.num_classes}"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: uint8 (N, H, W, 3), with labels int32 (N,)."""

    name: str
    num_classes: int
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": np.int32(self.labels[index])}

    def image_name(self, index: int) -> str:
        return f"{self.name}, image {index}"

    def fingerprint(self) -> Fingerprint:
        labels = names_checksum(map(str, self.labels.tolist()))
        return {"source": self.name, "count": len(self), "labels": labels}


def _open_digits(data_config, split):
    if data_config.resolution != digits.RESOLUTION:
        raise UserError(
            f"{key_name(data_config, 'resolution')} is {data_config.resolution}, but digits are "
            f"{digits.RESOLUTION} x {digits.RESOLUTION}; set "
            f"{setting(data_config, 'resolution', digits.RESOLUTION)}"
        )
    part = digits.load_digits_split(split)
    return ArraySource("digits", digits.NUM_CLASSES, part.images, part.labels)


def _rendered(what, counts, build):
    """The opener of a rendered source: `name` is the number of its images."""

    def opener(data_config, split):
        if split not in counts:
            raise UserError(f"{what} have no split {split!r}; choose one of {', '.join(counts)}")
        name = data_config.name
        count = as_whole(name) if name else counts[split]
        if not count:
            raise UserError(
                f"{key_name(data_config, 'name')} is {short_repr(name)}; for {what} give their "
                "number, such as 20000"
            )
        check_schema(count, Count, source=key_name(data_config, "name"))
        return build(split, count, data_config.resolution)

    return opener


def _open_latents(data_config, split):
    mirrored = split == "train" and data_config.flip  # only training flips
    return open_latents(packed_folder(data_config, split, "latents"), mirrored=mirrored)
