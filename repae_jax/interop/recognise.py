"""What a file or folder holds, told by what is there and not by its name."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError
from repae_jax.interop import autoencoder_kl, files, hub, original, pretrained, vit

RUN = "run"
DIFFUSERS = "diffusers"
CHECKPOINTS = {"repae", "ldm", "repa"}  # `original.Kind`

FORMATS = {
    RUN: "work directory of repae_jax",
    "repae": "training checkpoint of the original REPA-E: SiT, VAE and discriminator",
    "ldm": "training checkpoint of the original REPA-E's second stage: SiT on a frozen VAE",
    "repa": "training checkpoint of REPA: SiT on a frozen VAE",
    DIFFUSERS: "VAE as diffusers writes it",
    "vae": "VAE under LDM's names",
    "vae-tensors": "VAE under diffusers' names, without its config.json",
    "statistics": "latent statistics of a VAE (-latents-stats.pt)",
    "sit": "weights of a SiT",
    "discriminator": "weights of the discriminator",
    "lpips": "weights of LPIPS (VGG16, its linear heads, or both)",
    "teacher": "teacher trained by repae_jax",
    "vit": "weights of a teacher",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """A recognised file or folder.

    Attributes:
      format: a key of `FORMATS`.
      path: the folder, or the file that was read.
      content: what the file holds, nested dicts of arrays; empty for a run.
    """

    format: str
    path: pathlib.Path
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def find(name: str | pathlib.Path) -> Found:
    """Recognise a file, a folder, or a repository on the Hugging Face hub.

    A folder of the original's experiment stands for its newest checkpoint.

    Raises:
      UserError: nothing is there, it is damaged, or nobody knows it.
    """
    path = hub.locate(name, (pretrained.CONFIG, pretrained.WEIGHTS))
    return _folder(path) if path.is_dir() else _file(path)


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
    model = path / "model.safetensors"
    if model.is_file():
        return _file(model)
    kind = config.get("_class_name", config.get("model_type"))
    raise UserError(f"{path}: {pretrained.CONFIG} is of a {kind!r}, which is not known here")


def _file(path):
    content = files.read_stored(path)
    for format, matches in _SIGNS:
        if matches(content):
            return Found(format, path, content)
    if {"model", "ema"} & content.keys() and "opt" in content:
        return Found(original.kind_of(content, source=str(path)), path, content)
    if isinstance(content.get("state_dict"), Mapping):
        inside = content["state_dict"]
        for format, matches in _SIGNS:
            if matches(inside):
                return Found(format, path, inside)
    if vit.recognise(content):
        return Found("vit", path, content)
    names = ", ".join(repr(name) for name in list(content)[:3])
    raise UserError(f"{path}: holds {names or 'nothing'} and so on, which is not known here")


_SIGNS = (
    ("statistics", lambda c: "latents_scale" in c and "latents_bias" in c),
    ("vae", lambda c: autoencoder_kl.recognise(c) == "ldm"),
    ("vae-tensors", lambda c: (autoencoder_kl.recognise(c) or "").startswith("diffusers")),
    ("sit", lambda c: "x_embedder.proj.weight" in c and "pos_embed" in c),
    ("discriminator", lambda c: "main.0.weight" in c),
    ("lpips", lambda c: "lin0.model.1.weight" in c or "features.28.weight" in c),
    ("teacher", lambda c: any(str(name).startswith("params/") for name in c)),
)
