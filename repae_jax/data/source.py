"""What a source of labelled images is, and what the kinds of sources share."""

from __future__ import annotations

import pathlib
import shlex
import typing
from collections.abc import Callable

import numpy as np

from repae_jax.data.identity import Fingerprint
from repae_jax.errors import UserError

# What other people call the part that is not trained on, in the order of preference.
HELDOUT_NAMES = ("heldout", "validation", "val", "test")


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
        """One element: {"image": uint8 (H, W, 3), "label": int32 ()}.

        Raises:
          BadImage: what is stored there is no readable image.
          UserError: it cannot be reached at all, or its label is out of range.
        """
        ...

    def image_name(self, index: int) -> str:
        """What to call an image in messages: its file, or the record that holds it."""
        ...

    def fingerprint(self) -> Fingerprint:
        """What tells these data from others, see `data.identity`; no path, for they may move."""
        ...


def named(data_config: typing.Any, key: str) -> str:
    """What errors call a key of a config's data section, such as "config.data.path".

    For a command that takes no configuration, it is the name of the option: those are in the data
    section's `options`.
    """
    return getattr(data_config, "options", {}).get(key, f"config.data.{key}")


def setting(data_config: typing.Any, key: str, value: object) -> str:
    """The word of the command line that sets a key, such as "--config.data.path=PATH"."""
    name = named(data_config, key)
    return shlex.quote(f"{name if name.startswith('--') else f'--{name}'}={value}")


def checked_label(label: int, num_classes: int, name: str) -> np.int32:
    """The label, int32 (); raises UserError unless it is in 0..num_classes - 1."""
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


def check_images(source: Source) -> None:
    """Raise UserError if the elements hold no images, as those of a cache of latents may not."""
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
    """Where a split lies: in `path/split`, or for "train" in `path` itself.

    "heldout" is also found under the names that others give it (`HELDOUT_NAMES`).

    Args:
      path: the config's data.path.
      split: "train", "heldout", or the name of a folder in `path`.
      holds: whether a folder holds a split.
      content: what such a folder holds, for messages.
      called: what gives `path`, for messages.

    Raises:
      UserError: `path` is no folder, or has no such split.
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
