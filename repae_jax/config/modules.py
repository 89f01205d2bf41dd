"""The modules that a configuration's sections describe; nothing is allocated."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.config.sections import settings_of
from repae_jax.errors import UserError
from repae_jax.models.backbones.base import Backbone
from repae_jax.models.conditioning.base import Conditioner
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.projectors import Projector
from repae_jax.models.tokenizers.base import Tokenizer


def build_tokenizer(config: ConfigDict, dtype: Any = jnp.float32) -> Tokenizer:
    """The module of `config.tokenizer`.

    Raises:
      UserError: a key is wrong or not set, or the sizes do not go together or suit the images.
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
    """The backbone of `config.backbone`, steered by `config.condition`.

    Raises:
      UserError: a key is wrong or not set, or the sizes do not go together.
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


def build_conditioner(config: ConfigDict) -> Conditioner:
    """What steers the backbone, with a null condition where conditions are dropped."""
    section = config.condition
    row, fields = settings_of("condition", section, config.data.resolution)
    conditioner = row.build(config.data.num_classes, section.drop > 0, **fields)
    row.check(conditioner, section, "config.condition")
    return conditioner


def build_projector(config: ConfigDict) -> Projector:
    """The kind and size of the heads from the backbone's tokens to the teachers'."""
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
    """The encoder of one entry of `config.teachers`, which is at `path`.

    Raises:
      UserError: a key is wrong or not set, or the values do not go together.
    """
    row, fields = settings_of("teacher", entry, resolution, path)
    encoder = row.build(**fields, dtype=dtype, scan=scan)
    row.check(encoder, entry, path)
    return encoder
