"""Detects the format of a file or folder from its content."""

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
    dc_ae,
    ddt,
    dino_discriminator,
    discriminator,
    dit_folder,
    files,
    fuse_dit,
    fuse_dit_folder,
    hub,
    jit,
    latent_shards,
    latent_statistics,
    lightningdit,
    lpips,
    mmdit,
    pipeline_folder,
    rae_files,
    sit,
    vae_files,
    weight_files,
)
from repae_jax.interop.extract import Extract, extract
from repae_jax.interop.vae_families import FAMILIES
from repae_jax.interop.vit_format import Format
from repae_jax.interop.vit_names import FORMATS as VIT_FORMATS
from repae_jax.utils.schema import read_json

RUN = "run"
DIFFUSERS = "diffusers"
DIT_FOLDER = "diffusers-dit"
PIPELINE = "pipeline"
LATENTS, LATENT_SHARDS = "latents", "lightningdit-latents"
_MANIFEST = "manifest.json"  # of packed data
CHECKPOINTS = {  # `original.Kind`
    "repae", "ldm", "repa", "lightningdit", "dit", "ditdh", "ddt", "jit", "fuse-dit", "mmdit",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ViTNames:
    """The naming of a ViT's tensors.

    Attributes:
      formats: the possible formats; several if families share their names.
      prefix: the prefix of the network's names in the file.
      tensors: name -> array, from the entry of a nested file that holds them.
    """

    formats: tuple[Format, ...]
    prefix: str
    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Detected:
    """A file or folder of a known format.

    Attributes:
      format: a key of `FORMATS`.
      path: the folder, or the file that was read.
      content: the file's content: a flat dict of arrays under the network's own names; for a
        training checkpoint a nested dict with its plain values; empty for a folder.
      vit: the naming of the content, for a ViT of another publisher.
      extract: the network's place in the file, for a single network.
      discriminator: the discriminator beside a VAE, if the file holds one.
    """

    format: str
    path: pathlib.Path
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    vit: ViTNames | None = None
    extract: Extract | None = dataclasses.field(default=None, repr=False)
    discriminator: Extract | None = dataclasses.field(default=None, repr=False)

    @property
    def notes(self) -> list[str]:
        """Notes on what the file lacks, and on what was left out."""
        notes = list(self.content.get("notes", ()))
        left = self.extract.left_text() if self.extract else ""
        return [*notes, f"left out: {left}"] if left else notes


def detect(name: str | pathlib.Path) -> Detected:
    """Detect the format of a file, a folder, or a repository on the Hugging Face hub.

    A folder of the original's experiment stands for its newest checkpoint.

    Raises:
      UserError: nothing is there, it is damaged, or its format is unknown.
    """
    if index := hub.pipeline_index(name):
        if not pipeline_folder.is_pipeline(index.parent):
            dit_folder.check_pipeline(index)  # before gigabytes are fetched
        return _folder(hub.fetch_pipeline(str(name)))
    path = hub.locate(name, (vae_files.CONFIG,))
    if str(name).startswith(hub.PREFIX) and path.is_dir():  # its config names the weights' file
        diffusers = vae_files.read_config(path).get("_class_name") in (
            *FAMILIES,
            *dit_folder.CLASSES,
        )
        naming = weight_files.DIFFUSERS if diffusers else weight_files.TRANSFORMERS
        path = hub.locate(name, (vae_files.CONFIG,), naming)
    if path.is_dir():
        return _folder(path)
    if vae_files.of_a_folder(path):
        return Detected(DIT_FOLDER if dit_folder.is_dit_folder(path.parent) else DIFFUSERS, path)
    if path.name == fuse_dit_folder.STATES:
        return _fuse_dit(path)
    return _file(path)


def vit_names(content: Mapping[str, Any]) -> ViTNames | None:
    """The naming of a ViT's tensors; None if the content is no ViT.

    Candidates are the formats whose position table, patch embedding and first norm are present.
    Of several, the candidate with the fewest unknown names wins; among equals the one whose tensors
    are in the entry that its format itself names.
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
            return Detected(RUN, path)
        if saved := sorted((path / "checkpoints").glob("*.pt")):
            return _file(saved[-1])
    if (path / _MANIFEST).is_file():
        if read_json(path / _MANIFEST, dict[str, Any]).get("kind") == LATENTS:
            return Detected(LATENTS, path)
    elif latent_shards.files_in(path):
        return Detected(LATENT_SHARDS, path)
    if fuse_dit_folder.is_folder(path):
        return _fuse_dit(fuse_dit_folder.states_in(path))
    if pipeline_folder.is_pipeline(path):
        return Detected(PIPELINE, path)
    if (path / dit_folder.PIPELINE).is_file():
        path = dit_folder.transformer_in(path)
    if not (path / vae_files.CONFIG).is_file():
        raise UserError(
            f"{path}: neither {vae_files.CONFIG} (diffusers, transformers, a run) nor "
            "checkpoints/*.pt (the original) is in it"
        )
    config = vae_files.read_config(path)
    if config.get("_class_name") in FAMILIES:
        return Detected(DIFFUSERS, path)
    if config.get("_class_name") in dit_folder.CLASSES:
        return Detected(DIT_FOLDER, path)
    if weights := weight_files.find_weights(path, weight_files.TRANSFORMERS):
        return _file(weights)
    kind = config.get("_class_name", config.get("model_type"))
    if kind is None:
        raise UserError(
            f"{path}: {vae_files.CONFIG} names neither _class_name (diffusers) nor model_type "
            "(transformers), and there is no folder checkpoints/ (a run) beside it"
        )
    raise UserError(
        f"{path}: {vae_files.CONFIG} is of a {kind!r}, which is neither a VAE nor a DiT of "
        f"diffusers ({', '.join((*FAMILIES, dit_folder.CLASS))}), and model.safetensors is missing "
        "beside it: name a folder of one of these"
    )


def _fuse_dit(path):
    content = checkpoint_parts.parts_of(fuse_dit_folder.read(path), source=str(path))
    return Detected(checkpoint_parts.kind_of(content), path, content)


def _file(path):
    content = files.read_stored(path)
    if checkpoint := checkpoint_parts.parts_of(content, source=str(path)):
        return Detected(checkpoint_parts.kind_of(checkpoint), path, checkpoint)
    for tensors in content.values():
        if isinstance(tensors, Mapping):
            files.check_names(tensors, path)
    if latent_statistics.is_of_rae(content):
        return Detected("statistics", path, _arrays(content))
    if found := rae_files.decoder_in(content, source=str(path)):
        return Detected("rae-decoder", path, found.tensors, extract=found)
    for format, (sign, ignore) in _SIGNS.items():
        found = extract(content, sign, source=str(path), ignore=ignore)
        if found and _is_whole(format, found.tensors):
            return _network(format, found, content, path)
    if vit := vit_names(content):
        return Detected("vit", path, vit.tensors, vit)
    names = [repr(name) for name in content]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise UserError(
        f"{path}: holds {', '.join(names[:3]) or 'nothing'}{more}, which is no format known here"
    )


def _network(format, found, content, path):
    judge = None
    if format == "sit" and mmdit.is_mmdit(found.tensors):
        format = "mmdit-tensors"
    if format == "sit" and ddt.is_ddt(found.tensors):
        format = "ddt-tensors"
    if format == "sit" and lightningdit.is_lightningdit(found.tensors):
        format = "lightningdit-tensors"
    if format == "vae":
        if autoencoder_kl.detect_naming(found.tensors) != "ldm":
            format = "vae-tensors"
        judge = extract(content, discriminator.SIGN, source=str(path))
    return Detected(format, path, found.tensors, extract=found, discriminator=judge)


def _is_whole(format, tensors):
    """Whether a further tensor confirms a format whose sign other files share."""
    beside = {"statistics": "latents_bias", "sit": "pos_embed"}
    if format == "sit" and ("t_embedder.W" in tensors or ddt.is_ddt(tensors)):
        return True  # without a table of positions
    return format not in beside or beside[format] in tensors


def _arrays(content):
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


# format -> (its sign, names beside it under the same prefix), see extract.py
_SIGNS = {
    "statistics": (r"latents_scale$", ()),
    "vae": (autoencoder_kl.SIGN, autoencoder_kl.BESIDE),
    "dcae": (dc_ae.ORIGINAL_SIGN, ()),
    "sit": (sit.SIGN, ()),
    "jit-tensors": (jit.SIGN, (r"projectors\..*",)),
    "fuse-dit-tensors": (fuse_dit.SIGN, ()),
    "discriminator": (discriminator.SIGN, ()),
    "dino-discriminator": (dino_discriminator.SIGN, ()),
    "lpips": (lpips.SIGN, ()),
    "teacher": (r"^params/", ()),
}


def _indispensable(format, prefix):
    layers = (format.layers[name].format(i=0) for name in ("patch_embed", "blocks_{i}/norm1"))
    return {prefix + name for name in (format.tensors[0].theirs, *(f"{n}.weight" for n in layers))}


def _unexplained(tensors, format, prefix):
    """The names that the format does not know: of its network, or of networks stored with it."""
    known = format.first_names(prefix)  # the names of the first block, which stand for all blocks
    beside = re.compile("|".join(format.ignored(prefix)) or "(?!)")
    return [
        name
        for name in tensors
        if re.sub(r"(?<=\.)\d+(?=\.)", "0", name) not in known and not beside.fullmatch(name)
    ]
