"""What a file or folder holds, told by what is there and not by its name."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import autoencoder_kl, files, hub, original, pretrained
from repae_jax.interop.vit_names import FORMATS as VIT_FORMATS
from repae_jax.interop.vit_names import Format

RUN = "run"
DIFFUSERS = "diffusers"
CHECKPOINTS = {"repae", "ldm", "repa"}  # `original.Kind`

_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


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
      content: what the file holds: a flat dict of arrays, for a training checkpoint a nested one
        with its plain values; empty for a folder.
      vit: for a teacher of others, whose names the content has.
    """

    format: str
    path: pathlib.Path
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    vit: ViTNames | None = None


def find(name: str | pathlib.Path) -> Found:
    """Recognise a file, a folder, or a repository on the Hugging Face hub.

    A folder of the original's experiment stands for its newest checkpoint.

    Raises:
      UserError: nothing is there, it is damaged, or nobody knows it.
    """
    path = hub.locate(name, (pretrained.CONFIG,))
    if str(name).startswith(hub.PREFIX) and path.is_dir():  # its config tells the weights' file
        diffusers = pretrained.read_config(path).get("_class_name") in pretrained.FAMILIES
        weights = pretrained.WEIGHTS if diffusers else _TRANSFORMERS_WEIGHTS[0]
        path = hub.locate(name, (pretrained.CONFIG, weights))
    return _folder(path) if path.is_dir() else _file(path)


def vit_names(content: Mapping[str, Any]) -> ViTNames | None:
    """Whose names these are, or None if they are not a ViT's.

    Possible are the formats whose position table, patch embedding and first norm are there; of
    these the ones count that leave the fewest names unexplained.
    """
    candidates = []
    for format in VIT_FORMATS:
        inside = format.inside if isinstance(content.get(format.inside), Mapping) else None
        tensors = _arrays(content if inside is None else content[inside])
        for prefix in format.prefixes:
            if _indispensable(format, prefix) <= tensors.keys():
                unknown = len(_unexplained(tensors, format, prefix))
                candidates.append((format, (unknown, inside, prefix), tensors))
    if not candidates:
        return None
    _, best, tensors = min(candidates, key=lambda candidate: candidate[1][0])
    if 2 * best[0] > len(tensors):
        return None
    formats = tuple(format for format, how, _ in candidates if how == best)
    return ViTNames(formats, best[2], tensors)


def _folder(path):
    if (path / "checkpoints").is_dir():
        if (path / pretrained.CONFIG).is_file():
            return Found(RUN, path)
        if saved := sorted((path / "checkpoints").glob("*.pt")):
            return _file(saved[-1])
    if not (path / pretrained.CONFIG).is_file():
        raise UserError(
            f"{path}: neither {pretrained.CONFIG} (diffusers, transformers, a run) nor "
            "checkpoints/*.pt (the original) is in it"
        )
    config = pretrained.read_config(path)
    if config.get("_class_name") in pretrained.FAMILIES:
        return Found(DIFFUSERS, path)
    for name in _TRANSFORMERS_WEIGHTS:
        if (path / name).is_file():
            return _file(path / name)
    kind = config.get("_class_name", config.get("model_type"))
    if kind is None:
        raise UserError(
            f"{path}: {pretrained.CONFIG} names neither _class_name (diffusers) nor model_type "
            "(transformers), and there is no folder checkpoints/ (a run) beside it"
        )
    raise UserError(
        f"{path}: {pretrained.CONFIG} is of a {kind!r}: neither a VAE of diffusers "
        f"({', '.join(pretrained.FAMILIES)}), nor is {_TRANSFORMERS_WEIGHTS[0]} beside it"
    )


def _file(path):
    content = files.read_stored(path)
    _check_names(content, path)
    if {"model", "ema"} & content.keys() and "opt" in content:
        return _checkpoint(content, path)
    inside = content.get("state_dict")
    for tensors in (content, inside) if isinstance(inside, Mapping) else (content,):
        _check_names(tensors, path)
        tensors = _arrays(tensors)
        for format, matches in _SIGNS:
            if matches(tensors):
                return Found(format, path, tensors)
    if vit := vit_names(content):
        return Found("vit", path, vit.tensors, vit)
    names = [repr(name) for name in content]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"{path}: holds {', '.join(names[:3]) or 'nothing'}{more}, which is no format known here"
    )


def _checkpoint(content, path):
    for key in ("model", "ema", "vae", "discriminator", "opt"):
        if not isinstance(content.get(key, {}), Mapping):
            raise UserError(f"{path}: not a training checkpoint: {key!r} is no dict")
    return Found(original.kind_of(content, source=str(path)), path, content)


def _check_names(content, path):
    for name in content:
        if not isinstance(name, str):
            raise UserError(f"{path}: holds {name!r} where the name of a tensor belongs")


def _arrays(content):
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


_SIGNS = (
    ("statistics", lambda c: "latents_scale" in c and "latents_bias" in c),
    ("vae", lambda c: autoencoder_kl.recognise(c) == "ldm"),
    ("vae-tensors", lambda c: (autoencoder_kl.recognise(c) or "").startswith("diffusers")),
    ("sit", lambda c: "x_embedder.proj.weight" in c and "pos_embed" in c),
    ("discriminator", lambda c: "main.0.weight" in c),
    ("lpips", lambda c: "lin0.model.1.weight" in c or "features.28.weight" in c),
    ("teacher", lambda c: any(name.startswith("params/") for name in c)),
)


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
