"""Loading of the weights that a configuration names, with the loader of each family."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from repae_jax.config.modules import build_tokenizer
from repae_jax.errors import UserError
from repae_jax.interop import (
    dino_discriminator,
    discriminator,
    hub,
    latent_statistics,
    weight_files,
)
from repae_jax.interop.files import read_tensors
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.rae_files import read_encoder
from repae_jax.interop.small_networks import save_network
from repae_jax.interop.tables import flatten, load_flat
from repae_jax.interop.vae_files import read_weights
from repae_jax.interop.vit import load_vit, read_vit
from repae_jax.models.dino_discriminator import ENCODER, DinoDiscriminator
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.discriminators import Discriminator
from repae_jax.models.encoders.base import Encoder, initial_variables
from repae_jax.models.tokenizers.base import Tokenizer, variable_shapes
from repae_jax.models.tokenizers.families import family_of
from repae_jax.runs.checkpoints import FOLDER, restore_latest
from repae_jax.runs.workdir import load_config


class Publisher(NamedTuple):
    """The functions that read the published files of a family of encoders.

    Attributes:
      read: (path, encoder, source) -> the content of a file.
      load: (content, encoder, source) -> the encoder's variables.
    """

    read: Callable[..., Mapping[str, Any]]
    load: Callable[..., dict]


PUBLISHERS = {"vit": Publisher(read_vit, load_vit)}  # by family of `ENCODERS`


def load_teacher(entry: ConfigDict, encoder: Encoder, resolution: int) -> dict:
    """Load the variables of an encoder from the weights of its entry of `config.teachers`.

    The weights are a published file of its family, or a file that `save_teacher` wrote.

    Raises:
      UserError: the file is missing or unreadable, or holds another model.
    """
    path, publisher = entry.weights, PUBLISHERS.get(entry.family)
    located = hub.locate(path, (), weight_files.TRANSFORMERS)
    if located.is_dir():
        found = weight_files.find_weights(located, weight_files.TRANSFORMERS)
        if found is None:
            raise UserError(f"{located}: model.safetensors is missing")
        located = found
    tensors = publisher.read(located, encoder, path) if publisher else read_tensors(located)
    if any(name.startswith("params/") for name in tensors):
        key = jax.random.key(0)
        shapes = jax.eval_shape(lambda: initial_variables(encoder, key, resolution))
        return load_flat(tensors, shapes, source=path)
    if publisher is None:
        raise UserError(
            f"{path}: its tensors have other names than those of repae_jax, and no published files "
            f"of the family {entry.family!r} are known: make it with `pretrain-teacher`"
        )
    return publisher.load(tensors, encoder, path)


# class of discriminators -> the reader of its published files
_DISCRIMINATORS = {
    PatchDiscriminator: discriminator.load_discriminator,
    DinoDiscriminator: dino_discriminator.load_discriminator,
}


def read_discriminator(path: str, module: Discriminator) -> dict[str, Any]:
    """The trained variables {"params": ..., "batch_stats": ...} of a discriminator from its file.

    Raises:
      UserError: the file is missing or unreadable, or holds another network.
    """
    return _DISCRIMINATORS[type(module)](read_tensors(path), module, source=path)


def load_discriminator_encoder(config: ConfigDict, module: DinoDiscriminator) -> dict[str, Any]:
    """The collections of a DINO discriminator that no step changes, from the ViT's file.

    `config.discriminator.encoder_weights` is any name that a teacher's `weights` may be.

    Raises:
      UserError: the file is missing or unreadable, or holds another model.
    """
    weights = config.discriminator.encoder_weights
    if not weights:
        raise UserError(
            "config.discriminator.encoder_weights is empty: name the file with the weights of the "
            "frozen DINO (--config.discriminator.encoder_weights=PATH)"
        )
    entry = ConfigDict({"family": "vit", "weights": weights})
    return {"constants": {ENCODER: load_teacher(entry, module.encoder(), module.side)["params"]}}


def save_teacher(path: str, params: Mapping, notes: Mapping[str, object]) -> None:
    """Write an encoder's parameters as .safetensors under our own paths; `notes` are metadata."""
    save_network(path, {"params": params}, notes)


def read_vae(
    config: ConfigDict, tokenizer: Tokenizer, *, partial: bool = False
) -> tuple[dict[str, Any], Statistics | None]:
    """Read the tokenizer's variables and latent statistics, as `config.tokenizer` names them.

    `config.tokenizer.weights` is any name that `PretrainedVAE.from_pretrained` accepts, or a work
    directory that trained the tokenizer. The statistics are read from
    `config.tokenizer.statistics`, or else taken from the weights; None if these have none.

    With `partial` the weights may be those of a RAE's encoder alone; then "params" is absent.

    Raises:
      UserError: the weights do not exist, are unreadable, or hold another VAE.
    """
    name = config.tokenizer.weights
    if (pathlib.Path(name) / FOLDER).is_dir():
        variables, statistics = _read_run(name, tokenizer)
    elif (encoder := read_encoder(name, tokenizer)) is not None:
        if not partial:
            raise UserError(
                f"{name}: holds the encoder of a RAE alone, whose decoder is needed: name a "
                "diffusers folder, or the work directory that trained the decoder"
            )
        variables, statistics = encoder, None
    else:
        variables, statistics = read_weights(name, tokenizer)
    if config.tokenizer.statistics:
        statistics = latent_statistics.read(config.tokenizer.statistics, tokenizer.latent_channels)
    return variables, statistics


def _read_run(workdir, tokenizer):
    """The tokenizer of a work directory, and the final statistics of its LatentNorm."""
    state, shapes = restore_latest(workdir), variable_shapes(tokenizer)
    params = flatten((state["ema"] or {}).get("tokenizer", state["params"]["tokenizer"]))
    variables = {"params": load_flat(params, shapes.pop("params"), source=workdir)}
    if shapes:  # collections that no run changes
        constants = state.get("frozen", {}).get("tokenizer", {})
        variables |= load_flat(flatten(constants), shapes, source=workdir)
    _check_options(workdir, tokenizer)
    return variables, statistics_of(state["ema"], tokenizer.latent_channels, source=workdir)


def _check_options(workdir, tokenizer):
    """Raise UserError for a run's tokenizer of other options; its arrays do not show them all."""
    theirs, family = build_tokenizer(load_config(pathlib.Path(workdir))), family_of(tokenizer)
    for key in family.options:
        field = family.field(key)
        there, here = getattr(theirs, field, None), getattr(tokenizer, field)
        if there != here:
            raise UserError(
                f"{workdir}: its tokenizer has {key} {there!r}, but config.tokenizer.{key} is "
                f"{here!r}: take the run's own config.tokenizer"
            )


def statistics_of(ema: Mapping | None, channels: int, *, source: str) -> Statistics | None:
    """The latent statistics in a run's moving average; None if the run trains no backbone.

    Raises:
      UserError: the statistics are invalid, or have another number of channels.
    """
    norm = (ema or {}).get("latent_norm")
    if not norm:
        return None
    keys = ("latent_norm/mean", "latent_norm/var")
    return latent_statistics.as_statistics(
        norm["mean"], norm["var"], channels, source=source, keys=keys, positions="hwc"
    )
