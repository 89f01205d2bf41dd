"""What a missing file of a configuration is, and where it is published or how it is made."""

import pathlib

from ml_collections import ConfigDict

from repae_jax.data import latents
from repae_jax.interop import downloads, hub
from repae_jax.interop.downloads import Download
from repae_jax.interop.files import SUFFIXES

_LISTED = "docs/weights.md lists what is published"
_ROLES = {  # key -> what its file is
    "tokenizer.weights": "the tokenizer",
    "tokenizer.statistics": "the statistics of the tokenizer's latents",
    "text_encoder.weights": "the text encoder",
    "text_encoder.tokenizer": "the text encoder's tokenizer.json",
    "discriminator.weights": "the discriminator",
    "discriminator.encoder_weights": "the discriminator's frozen encoder",
    "lpips.weights": "a part of the perceptual loss",
    "lpips.vgg_weights": "a part of the perceptual loss",
    "evaluation.weights": "the network that measures samples",
}
_OF_DATA = {  # source of data -> what its path names
    "captions": "a folder of pictures with captions",
    "folder": "a folder of class folders",
    "hdf5": "the original's images.h5",
    "packed": "a folder that `python -m repae_jax prepare` writes",
    "tars": "a folder of tars of pictures with captions",
    "tfds": "a folder of TFDS's",
}


def describe(config: ConfigDict, key: str) -> str:
    """What the file of a key is and where it is published or how it is made, as a clause.

    Args:
      config: a configuration, valid or not.
      key: of a file or folder, without "config.", such as "teachers.dinov2.weights".
    """
    section, _, rest = key.partition(".")
    if section == "data":
        return _describe_data(config)
    if section == "teachers":
        return _describe_teacher(rest.rpartition(".")[0], config.teachers)
    if key == "evaluation.reference":
        return "images, or their statistics, that samples are compared with: a file of your own"
    name = str(config[section][rest])
    role, found = _ROLES[key], downloads.weights_named(name)
    if found:
        return _published(found, role)
    if key == "text_encoder.weights" and config.text_encoder.pretrain.steps:
        return f"{role}; {_make('pretrain-text-encoder')}"
    if key == "tokenizer.weights" and name and pathlib.Path(name).suffix not in SUFFIXES:
        return (
            f"{role}, in a work directory or a folder of diffusers'; train it first, such as with "
            f"`python -m repae_jax train --config FILE:vae --workdir {name}`, or take a published "
            f"one: {_LISTED}"
        )
    return f"{role}; {_LISTED}"


def describe_hub(name: str, reason: str) -> str:
    """The way out where the hub does not give `name`, as a clause."""
    return (
        f"which the Hugging Face hub does not give ({reason}) and {hub.PRETRAINED / _bare(name)} "
        "does not hold"
    )


def _bare(name):
    return name.removeprefix(hub.PREFIX)


def _published(found: Download, role: str) -> str:
    return f"{found.what}, {role}; {found.published}"


def _describe_teacher(name, teachers):
    entry, role = teachers[name], f"the teacher {name}"
    if entry.pretrain.steps:
        return f"{role}; {_make('pretrain-teacher')}"
    found = downloads.weights_named(entry.weights) or downloads.teacher_of(entry.get("arch") or "")
    return _published(found, role) if found else f"{role}; {_LISTED}"


def _describe_data(config):
    data = config.data
    found = downloads.DATA.get(str(data.path).rstrip("/"))
    if data.source == latents.KIND:
        made = (
            "cached latents; make them with `python -m repae_jax encode --config FILE:images "
            f"--output {data.path}`, FILE being this configuration"
        )
        return f"{made}; {found.what} are {found.published}" if found else made
    if data.source == "tfds":
        found = downloads.DATA.get(data.name)
    what = _OF_DATA.get(data.source, "the data")
    return _published(found, what) if found else f"{what}; docs/data.md shows its form"


def _make(command):
    return f"make it with `python -m repae_jax {command}` and the same config"
