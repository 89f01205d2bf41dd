"""Finds the file with a model's weights in a folder: plain or a variant, single or in shards."""

import pathlib
import re
from collections.abc import Iterable, Sequence

from repae_jax.errors import UserError

Naming = Sequence[tuple[str, str]]  # (stem, suffix) pairs, the preferred first

DIFFUSERS: Naming = (
    ("diffusion_pytorch_model", ".safetensors"),
    ("diffusion_pytorch_model", ".bin"),
)
TRANSFORMERS: Naming = (("model", ".safetensors"), ("pytorch_model", ".bin"))

_VARIANT = r"[A-Za-z0-9_-]+"  # such as "fp16", "ema", "non_ema"


def file_names(naming: Naming, variant: str | None = None) -> list[str]:
    """The possible file names of a model's weights, the preferred first.

    Args:
      naming: `DIFFUSERS` or `TRANSFORMERS`.
      variant: such as "fp16"; None for the plain weights.

    Raises:
      UserError: `variant` is not a valid name.
    """
    if variant is not None and not re.fullmatch(_VARIANT, variant):
        raise UserError(f"variant is {variant!r}: give a word such as 'fp16'")
    inner = f".{variant}" if variant else ""
    return [
        name
        for stem, suffix in naming
        for name in (f"{stem}{inner}{suffix}", f"{stem}{suffix}.index{inner}.json")
    ]


def variants_among(names: Iterable[str], naming: Naming) -> list[str]:
    """The names among `names` that hold a variant of a model's weights, or index its shards."""
    forms = [
        form
        for stem, suffix in map(_escaped, naming)
        for form in (rf"{stem}\.{_VARIANT}{suffix}", rf"{stem}{suffix}\.index\.{_VARIANT}\.json")
    ]
    return sorted(name for name in names if any(re.fullmatch(form, name) for form in forms))


def is_of(name: str, naming: Naming) -> bool:
    """Whether a file of this name holds a model's weights, or indexes their shards."""
    return name in file_names(naming) or bool(variants_among([name], naming))


def find_weights(
    folder: pathlib.Path, naming: Naming, variant: str | None = None
) -> pathlib.Path | None:
    """The file with a model's weights in a folder, or the index of its shards; None without any.

    Raises:
      UserError: the folder has only other variants than the requested one.
    """
    for name in file_names(naming, variant):
        if (folder / name).is_file():
            return folder / name
    there = variants_among((path.name for path in folder.iterdir()), naming)
    if not there and variant is None:
        return None
    raise UserError(without(str(folder), file_names(naming, variant)[0], there))


def without(folder: str, wanted: str, there: Sequence[str]) -> str:
    """The message that `folder` lacks the file `wanted`, and has the variants `there`."""
    if not there:
        return f"{folder}: {wanted} is missing"
    return (
        f"{folder}: {wanted} is missing; there are {', '.join(there)}: name the one that is meant, "
        f"as {folder}/{there[0]}, or in Python with variant="
    )


def _escaped(name):
    return map(re.escape, name)
