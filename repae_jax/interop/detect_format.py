"""What a file or folder holds, told by what is there and not by its name."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import (
    autoencoder_kl,
    checkpoint_parts,
    discriminator,
    files,
    hub,
    lpips,
    sit,
    vae_files,
    weight_files,
)
from repae_jax.interop.extract import Extract, extract
from repae_jax.interop.vae_families import FAMILIES
from repae_jax.interop.vit_names import FORMATS as VIT_FORMATS
from repae_jax.interop.vit_names import Format

RUN = "run"
DIFFUSERS = "diffusers"
CHECKPOINTS = {"repae", "ldm", "repa"}  # `original.Kind`


@dataclasses.dataclass(frozen=True)
class ViTNames:
    """Whose names the tensors of a ViT have.

    Attributes:
      formats: several where families share their names.
      prefix: what stands before the names of the network.
      tensors: a flat dict, of the entry that holds them in a nested file.
    """

    formats: tuple[Format, ...]
    prefix: str
    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Found:
    """A recognised file or folder.

    Attributes:
      format: a key of `FORMATS`.
      path: the folder, or the file that was read.
      content: what the file holds: a flat dict of arrays under the network's own names, for a
        training checkpoint a nested one with its plain values; empty for a folder.
      vit: for a teacher of others, whose names the content has.
      extract: for a single network, where in the file it was.
      discriminator: that of a VAE, where the file holds one.
    """

    format: str
    path: pathlib.Path
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    vit: ViTNames | None = None
    extract: Extract | None = dataclasses.field(default=None, repr=False)
    discriminator: Extract | None = dataclasses.field(default=None, repr=False)

    @property
    def notes(self) -> list[str]:
        """What was missing in the file, or left out of it."""
        notes = list(self.content.get("notes", ()))
        left = self.extract.left_text() if self.extract else ""
        return [*notes, f"left out: {left}"] if left else notes


def find(name: str | pathlib.Path) -> Found:
    """Recognise a file, a folder, or a repository on the Hugging Face hub.

    A folder of the original's experiment stands for its newest checkpoint.

    Raises:
      UserError: nothing is there, it is damaged, or nobody knows it.
    """
    path = hub.locate(name, (vae_files.CONFIG,))
    if str(name).startswith(hub.PREFIX) and path.is_dir():  # its config tells the weights' file
        diffusers = vae_files.read_config(path).get("_class_name") in FAMILIES
        naming = weight_files.DIFFUSERS if diffusers else weight_files.TRANSFORMERS
        path = hub.locate(name, (vae_files.CONFIG,), naming)
    if path.is_dir():
        return _folder(path)
    return Found(DIFFUSERS, path) if vae_files.of_a_folder(path) else _file(path)


def vit_names(content: Mapping[str, Any]) -> ViTNames | None:
    """Whose names these are, or None if they are not a ViT's.

    Possible are the formats whose position table, patch embedding and first norm are there; of
    these the ones count that leave the fewest names unexplained, in the entry that is theirs.
    """
    candidates = []
    for format in VIT_FORMATS:
        inside = format.entry_in(content)
        tensors = _arrays(content if inside is None else content[inside])
        for prefix in format.prefixes_in(tensors):
            if _indispensable(format, prefix) <= tensors.keys():
                unknown = len(_unexplained(tensors, format, prefix))
                how = (unknown, inside not in (None, format.inside), inside, prefix)
                candidates.append((format, how, tensors))
    if not candidates:
        return None
    _, best, tensors = min(candidates, key=lambda candidate: candidate[1][:2])
    if 2 * best[0] > len(tensors):
        return None
    formats = tuple(format for format, how, _ in candidates if how == best)
    return ViTNames(formats, best[-1], tensors)


def _folder(path):
    if (path / "checkpoints").is_dir():
        saved = any(folder.name.isdigit() for folder in (path / "checkpoints").iterdir())
        if saved or (path / vae_files.CONFIG).is_file():
            return Found(RUN, path)
        if saved := sorted((path / "checkpoints").glob("*.pt")):
            return _file(saved[-1])
    if not (path / vae_files.CONFIG).is_file():
        raise UserError(
            f"{path}: neither {vae_files.CONFIG} (diffusers, transformers, a run) nor "
            "checkpoints/*.pt (the original) is in it"
        )
    config = vae_files.read_config(path)
    if config.get("_class_name") in FAMILIES:
        return Found(DIFFUSERS, path)
    if weights := weight_files.find_weights(path, weight_files.TRANSFORMERS):
        return _file(weights)
    kind = config.get("_class_name", config.get("model_type"))
    if kind is None:
        raise UserError(
            f"{path}: {vae_files.CONFIG} names neither _class_name (diffusers) nor model_type "
            "(transformers), and there is no folder checkpoints/ (a run) beside it"
        )
    raise UserError(
        f"{path}: {vae_files.CONFIG} is of a {kind!r}: neither a VAE of diffusers "
        f"({', '.join(FAMILIES)}), nor is model.safetensors beside it"
    )


def _file(path):
    content = files.read_stored(path)
    if checkpoint := checkpoint_parts.parts_of(content, source=str(path)):
        return Found(checkpoint_parts.kind_of(checkpoint), path, checkpoint)
    for tensors in content.values():
        if isinstance(tensors, Mapping):
            files.check_names(tensors, path)
    for format, (sign, ignore) in _SIGNS.items():
        found = extract(content, sign, source=str(path), ignore=ignore)
        if found and _is_whole(format, found.tensors):
            return _network(format, found, content, path)
    if vit := vit_names(content):
        return Found("vit", path, vit.tensors, vit)
    names = [repr(name) for name in content]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"{path}: holds {', '.join(names[:3]) or 'nothing'}{more}, which is no format known here"
    )


def _network(format, found, content, path):
    judge = None
    if format == "vae":
        if autoencoder_kl.recognise(found.tensors) != "ldm":
            format = "vae-tensors"
        judge = extract(content, discriminator.SIGN, source=str(path))
    return Found(format, path, found.tensors, extract=found, discriminator=judge)


def _is_whole(format, tensors):
    """Whether the tensors beside the sign are there too, where it alone would not tell."""
    beside = {"statistics": "latents_bias", "sit": "pos_embed"}
    return format not in beside or beside[format] in tensors


def _arrays(content):
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


# format -> (its sign, names beside it under the same prefix), see extract.py
_SIGNS = {
    "statistics": (r"latents_scale$", ()),
    "vae": (autoencoder_kl.SIGN, autoencoder_kl.BESIDE),
    "sit": (sit.SIGN, ()),
    "discriminator": (discriminator.SIGN, ()),
    "lpips": (lpips.SIGN, ()),
    "teacher": (r"^params/", ()),
}


def _indispensable(format, prefix):
    layers = (format.layers[name].format(i=0) for name in ("patch_embed", "blocks_{i}/norm1"))
    return {prefix + name for name in (format.tensors[0].theirs, *(f"{n}.weight" for n in layers))}


def _unexplained(tensors, format, prefix):
    """The names that are neither the network's nor known to stand beside it."""
    known = format.first_names(prefix)  # of the first block, for which all others stand in
    beside = re.compile("|".join(format.ignored(prefix)) or "(?!)")
    return [
        name
        for name in tensors
        if re.sub(r"(?<=\.)\d+(?=\.)", "0", name) not in known and not beside.fullmatch(name)
    ]
