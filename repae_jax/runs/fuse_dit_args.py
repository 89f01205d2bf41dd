"""Conversion between the config.json of fuse-dit's checkpoints and configurations."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.defaults import tokenizer
from repae_jax.config.published_text import fusedit256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.fuse_dit import infer_dimensions
from repae_jax.interop.fuse_dit_config import make_config, text_encoder_of
from repae_jax.interop.fuse_dit_folder import as_theirs
from repae_jax.models.backbones.fuse_dit import FuseDiT
from repae_jax.runs.build import build_models
from repae_jax.runs.lightningdit_args import plain_config
from repae_jax.runs.original_args import OURS, backbone_of
from repae_jax.runs.text_args import check_text_width

_VAES = {4: "f8d4", 16: "f8d16", 32: "f16d32"}  # latent channels -> preset
_TEXT_ENCODERS = {"gemma-2b": "google/gemma-2b"}  # preset -> its name there
_SIZES = ("kv_heads", "head_width", "mlp_width")


def config_of_fuse_dit(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a training of fuse-dit's.

    Its network follows from the weights, its training is the published one at 256 pixels, its text
    encoder the one that config.json names. The VAE's weights are no part of it.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: the text encoder or the VAE is none of those here.
    """
    theirs = plain_config(content, source)
    if OURS in theirs:
        return from_json(theirs[OURS], source=source)
    found = infer_dimensions(content["ema"], source=source)
    config = fusedit256()
    _check_text_encoder(text_encoder_of(theirs), config, source)
    check_text_width(found["text_width"], config, source)
    vae = _VAES.get(found["latent_channels"])
    if vae is None:
        raise UserError(
            f"{source}: its latents have {found['latent_channels']} channels, as those of no VAE "
            f"here ({', '.join(map(str, _VAES))}): give a configuration with --config"
        )
    config.name = "fuse-dit"
    config.tokenizer = tokenizer(vae)
    config.backbone = backbone_of(found, "fusedit", _SIZES)
    return apply_recipe(config, "vanilla")


def fuse_dit_config(config: ConfigDict) -> dict[str, Any]:
    """fuse-dit's config.json for a run; "repae_jax" holds the run's configuration as JSON.

    The checkpoint holds neither the VAE nor projection heads, so a run that has trained them goes
    on from it with a frozen VAE and without an alignment.
    """
    backbone = build_models(config).backbone
    encoder = config.text_encoder
    name = _TEXT_ENCODERS.get(encoder.arch) or encoder.weights or encoder.arch
    tuned = "tokenizer" in config.train
    if config.teachers or tuned:
        config = apply_recipe(config.copy_and_resolve_references(), "vanilla")
    if tuned:
        config.tokenizer.update(weights="", statistics="")
    return make_config(_dimensions(backbone), name, **{OURS: to_json(config)})


def fuse_dit_entries(
    content: Mapping[str, Any], config: ConfigDict, step: int, epoch: int
) -> dict[str, Any]:
    """The entries of their file: the networks, and the states of DeepSpeed's engine."""
    del epoch
    buffers = [name for name in content["model"] if name.endswith(".pos_embed")]
    return as_theirs(content, buffers, step, config.batch_size)


def _dimensions(backbone: FuseDiT) -> dict[str, Any]:
    """The backbone's dimensions under the names of `infer_dimensions`."""
    sizes = ("latent_channels", "patch_size", "hidden_size", "depth", "num_heads", *_SIZES)
    width = backbone.conditioner.spec()["tokens"].shape[1]
    return {name: getattr(backbone, name) for name in sizes} | {"text_width": width}


def _check_text_encoder(name, config, source):
    """Raise UserError if a text encoder's name, "" if unknown, is not the configuration's."""
    own = config.text_encoder.arch
    if name and pathlib.PurePosixPath(name).name != own:
        raise UserError(
            f"{source}: its text encoder is {name!r}, and only {_TEXT_ENCODERS[own]} is known "
            "here: give a configuration with --config, whose text encoder makes the same states"
        )
