"""Flax modules and the sampler from the sections of a configuration, without weights."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.config.sections import settings_of
from repae_jax.errors import UserError
from repae_jax.models.backbones.base import Backbone
from repae_jax.models.conditioning.base import Conditioner, Given
from repae_jax.models.discriminators import Discriminator
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.projectors import Projector
from repae_jax.models.text_encoders.base import TextEncoder
from repae_jax.models.text_encoders.families import NONE as NO_TEXT
from repae_jax.models.tokenizers.base import Tokenizer
from repae_jax.sampling.sampler import Sampler


def build_tokenizer(config: ConfigDict, dtype: Any = jnp.float32) -> Tokenizer:
    """Build the module of `config.tokenizer`; `dtype` is the type of its matrix products.

    Raises:
      UserError: a key is wrong or not set, or the sizes contradict each other or the resolution.
    """
    resolution = config.data.resolution
    row, fields = settings_of("tokenizer", config.tokenizer, resolution)
    tokenizer = row.build(**fields, dtype=dtype, remat=config.compute.tokenizer_remat)
    if resolution % tokenizer.factor:
        raise UserError(
            f"config.data.resolution is {resolution}, not divisible by the tokenizer's "
            f"down-sampling factor {tokenizer.factor}"
        )
    row.check(tokenizer, config.tokenizer, "config.tokenizer")
    return tokenizer


def build_backbone(
    config: ConfigDict,
    tokenizer: Tokenizer,
    teacher_dims: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> Backbone:
    """Build the module of `config.backbone` with the conditioning of `config.condition`.

    Args:
      config: the configuration.
      tokenizer: the tokenizer whose latents the backbone denoises.
      teacher_dims: the width of each teacher's tokens.
      dtype: the type of the matrix products.

    Raises:
      UserError: a key is wrong or not set, or the sizes contradict each other.
    """
    row, fields = settings_of("backbone", config.backbone, config.data.resolution)
    backbone = row.build(
        latent_size=config.data.resolution // tokenizer.factor,
        latent_channels=tokenizer.latent_channels,
        conditioner=build_conditioner(config),
        teacher_dims=teacher_dims,
        projector=build_projector(config),
        dtype=dtype,
        remat=config.compute.backbone_remat,
        scan=config.compute.scan_blocks,
        **fields,
    )
    row.check(backbone, config.backbone, "config.backbone")
    return backbone


def build_discriminator(config: ConfigDict, dtype: Any = jnp.float32) -> Discriminator:
    """Build the module of `config.discriminator`; `dtype` is the type of its matrix products.

    Raises:
      UserError: a key is wrong or not set, or the values contradict each other.
    """
    section = config.discriminator
    row, fields = settings_of("discriminator", section, config.data.resolution)
    discriminator = row.build(**fields, dtype=dtype)
    row.check(discriminator, section, "config.discriminator")
    return discriminator


def build_conditioner(config: ConfigDict) -> Conditioner:
    """Build the conditioner, with a null condition if conditions are dropped in training."""
    section = config.condition
    row, fields = settings_of("condition", section, config.data.resolution)
    given = Given(config.data.num_classes, section.drop > 0, build_text_encoder(config))
    conditioner = row.build(given, **fields)
    row.check(conditioner, section, "config.condition")
    return conditioner


def build_text_encoder(
    config: ConfigDict, dtype: Any = jnp.float32, *, scan: bool = False
) -> TextEncoder | None:
    """Build the module of `config.text_encoder`; None for a run without captions.

    Args:
      config: the configuration.
      dtype: the type of the matrix products.
      scan: compile the blocks as one loop.

    Raises:
      UserError: a key is wrong or not set, or the values contradict each other.
    """
    section = config.text_encoder
    row, fields = settings_of("text_encoder", section, config.data.resolution)
    if section.family == NO_TEXT:
        return None
    encoder = row.build(**fields, dtype=dtype, scan=scan)
    row.check(encoder, section, "config.text_encoder")
    return encoder


def build_projector(config: ConfigDict) -> Projector:
    """Build the projector: the kind and size of the heads from the backbone to the teachers."""
    row, fields = settings_of("projector", config.projector, config.data.resolution)
    projector = row.build(**fields)
    row.check(projector, config.projector, "config.projector")
    return projector


def build_encoder(
    entry: ConfigDict,
    resolution: int,
    dtype: Any = jnp.float32,
    *,
    scan: bool = False,
    path: str = "config.teachers.NAME",
) -> Encoder:
    """Build the encoder of an entry of `config.teachers`.

    Args:
      entry: the entry.
      resolution: the side of the images in pixels.
      dtype: the type of the matrix products.
      scan: compile the blocks as one loop.
      path: the entry's key, for errors.

    Raises:
      UserError: a key is wrong or not set, or the values contradict each other.
    """
    row, fields = settings_of("teacher", entry, resolution, path)
    encoder = row.build(**fields, dtype=dtype, scan=scan)
    row.check(encoder, entry, path)
    return encoder


def build_sampler(config: ConfigDict, **changes: Any) -> Sampler:
    """Build the sampler of `config.sampling`; entries of `changes` other than None override it.

    Raises:
      UserError: a value is out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    objective = config.objective
    training = {"interpolant": objective.interpolant, "noise_scale": objective.noise_scale}
    return Sampler(**training, **{**config.sampling, **given})
