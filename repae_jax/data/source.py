"""The contract of a source of labeled images, and functions that the kinds of sources share."""

from __future__ import annotations

import pathlib
import shlex
import typing
from collections.abc import Callable

import numpy as np

from repae_jax.data.identity import Fingerprint
from repae_jax.errors import UserError

# Other names of the held-out split, in order of preference.
HELDOUT_NAMES = ("heldout", "validation", "val", "test")


class Source(typing.Protocol):
    """Random access to labeled images, as `grain.MapDataset.source` requires.

    The elements of a source of images with captions also hold "caption", a str, or a tuple of
    several; its method `caption(index)` reads the caption alone, of several the first. Without
    captions, it has no such method, or None in its place.

    A source that can crop at random has a method `read(index, window)`: the element with the image
    at a `crop.RandomWindow`; with the window None it is the element itself.

    Attributes:
      name: the source's name in messages.
      num_classes: labels are 0..num_classes - 1.
    """

    name: str
    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One element: {"image": uint8 (H, W, 3), "label": int32 ()}.

        Raises:
          BadImage: the image cannot be decoded.
          UserError: the image cannot be read, or its label is out of range.
        """
        ...

    def image_name(self, index: int) -> str:
        """The name of an image in messages: its file, or the record that holds it."""
        ...

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the data, see `data.identity`; it holds no paths, as data may move."""
        ...


def key_name(data_config: typing.Any, key: str) -> str:
    """The name of a key of the config's data section in errors, such as "config.data.path".

    A command without a configuration gives {key: name of its option} in the data section's
    `options`; the name is then that of the option.
    """
    return getattr(data_config, "options", {}).get(key, f"config.data.{key}")


def setting(data_config: typing.Any, key: str, value: object) -> str:
    """The command-line argument that sets a key, such as "--config.data.path=PATH"."""
    name = key_name(data_config, key)
    return shlex.quote(f"{name if name.startswith('--') else f'--{name}'}={value}")


def check_label(label: int, num_classes: int, name: str) -> np.int32:
    """Return the label, int32 (); raise UserError unless it is in 0..num_classes - 1."""
    if not 0 <= label < num_classes:
        way_out = (
            "choose a split whose images all have labels"
            if label < 0
            else f"set --config.data.num_classes={label + 1} or more"
        )
        raise UserError(
            f"{name}: label {label} is not in 0..{num_classes - 1}; correct it, or {way_out}"
        )
    return np.int32(label)


def check_captions(source: Source) -> None:
    """Raise UserError if the images of a source have no captions."""
    if getattr(source, "caption", None) is None:
        raise UserError(
            f"{source.name} has no captions, which config.condition.family 'text' takes: name data "
            "with captions (--config.data.source=described, captions or tars, or packed shards of "
            "these), or set --config.condition.family=class"
        )


def check_images(source: Source) -> None:
    """Raise UserError if the elements hold no images; a cache of latents may lack them."""
    if len(source) and "image" not in source[0]:
        raise UserError(
            f"{source.name} holds latents without their images, which are needed here: encode "
            "them with --images"
        )


def split_folder(
    path: typing.Any,
    split: str,
    holds: Callable[[pathlib.Path], bool],
    content: str,
    *,
    called: str = "config.data.path",
) -> pathlib.Path:
    """The folder of a split: `path/split`, or for "train" also `path` itself.

    "heldout" is also found under its other names (`HELDOUT_NAMES`).

    Args:
      path: the config's data.path.
      split: "train", "heldout", or the name of a folder in `path`.
      holds: folder -> whether it holds a split.
      content: the content of such a folder, for messages.
      called: the name of the key of `path`, for messages.

    Raises:
      UserError: `path` is no folder, or lacks the split.
    """
    if not path or not pathlib.Path(path).is_dir():
        raise UserError(f"{called} is {path!r}, which is no folder; name one that holds {content}")
    root = pathlib.Path(path)
    names = HELDOUT_NAMES if split == "heldout" else (split,)
    for name in names:
        if (root / name).is_dir() and holds(root / name):
            return root / name
    if split == "train":
        return root
    raise UserError(
        f"{root} has no {' or '.join(names)} folder of {content}; add one "
        "(and a train folder beside it)"
    )
