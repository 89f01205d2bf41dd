"""The modules that a configuration's sections describe; nothing is allocated."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.config.defaults import backbone_options, tokenizer_fields
from repae_jax.config.sections import check_family, families_of
from repae_jax.errors import UserError
from repae_jax.models.backbones.base import Backbone
from repae_jax.models.conditioning.base import Conditioner
from repae_jax.models.encoders.base import Encoder
from repae_jax.models.projectors import Projector
from repae_jax.models.tokenizers.base import Tokenizer


def build_tokenizer(config: ConfigDict, dtype: Any = jnp.float32) -> Tokenizer:
    """The module of `config.tokenizer`.

    Raises:
      UserError: its sizes do not go together, or do not suit the images.
    """
    family, fields = tokenizer_fields(config)
    row, resolution = families_of("tokenizer")[0][family], config.data.resolution
    tokenizer = row.module(**fields, dtype=dtype, remat=config.compute.tokenizer_remat)
    if resolution % tokenizer.factor:
        raise UserError(
            f"config.data.resolution is {resolution}, not divisible by the tokenizer's "
            f"down-sampling factor {tokenizer.factor}"
        )
    row.check(tokenizer, resolution)
    return tokenizer


def build_backbone(
    config: ConfigDict,
    tokenizer: Tokenizer,
    teacher_dims: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> Backbone:
    """The backbone of `config.backbone`, steered by `config.condition`.

    Raises:
      UserError: its sizes do not go together.
    """
    family, options = backbone_options(config)
    row = families_of("backbone")[0][family]
    backbone = row.module(
        latent_size=config.data.resolution // tokenizer.factor,
        latent_channels=tokenizer.latent_channels,
        conditioner=build_conditioner(config),
        teacher_dims=teacher_dims,
        projector=build_projector(config),
        dtype=dtype,
        remat=config.compute.backbone_remat,
        scan=config.compute.scan_blocks,
        **options,
    )
    row.check(backbone)
    return backbone


def build_conditioner(config: ConfigDict) -> Conditioner:
    """What steers the backbone, with a null condition where conditions are dropped."""
    check_family("condition", config.condition)
    options = config.condition.to_dict()
    family, drop = options.pop("family"), options.pop("drop")
    return families_of("condition")[0][family].build(config.data.num_classes, drop > 0, **options)


def build_projector(config: ConfigDict) -> Projector:
    """How the backbone's tokens are brought to the teachers' widths."""
    check_family("projector", config.projector)
    options = config.projector.to_dict()
    return families_of("projector")[0][options.pop("family")].build(**options)


def build_encoder(
    entry: ConfigDict, resolution: int, dtype: Any = jnp.float32, *, scan: bool = False
) -> Encoder:
    """The encoder of one entry of `config.teachers`; explicit keys override the preset's."""
    return families_of("teacher")[0][entry.family].build(entry, resolution, dtype, scan=scan)
