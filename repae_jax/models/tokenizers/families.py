"""The tokenizers that a configuration can name: a new one is a file here and a row below."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repae_jax.errors import UserError
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
from repae_jax.models.tokenizers.base import Tokenizer
from repae_jax.models.tokenizers.qwen_image_vae import QWEN_VAE_CONFIGS, AutoencoderKLQwenImage
from repae_jax.utils.schema import Width, each, whole


def _accept(tokenizer: Tokenizer, resolution: int) -> None:
    """Finds nothing wrong."""


class Family(NamedTuple):
    """A row of `TOKENIZERS`: what `config.tokenizer` may say of it.

    Attributes:
      module: the flax module, a `Tokenizer`: it takes dtype, remat, and the fields of its options.
      options: its keys of `config.tokenizer`, and the types of their values (utils/schema.py). A
        key that is not set is the preset's, or else has the default of the module's field.
      fields: key -> the module's field, where that has another name.
      presets: `config.tokenizer.arch` -> fields.
      check: (module, side of the images in pixels) raises UserError for sizes that do not go
        together, naming the key and the way out.
    """

    module: type[Tokenizer]
    options: Mapping[str, Any]
    fields: Mapping[str, str] = {}
    presets: Mapping[str, Mapping[str, Any]] = {}
    check: Callable[[Any, int], None] = _accept

    def given(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The module's fields that a section sets."""
        values = {self.fields.get(key, key): section[key] for key in self.options}
        return {
            field: tuple(value) if isinstance(value, list) else value
            for field, value in values.items()
            if value is not None
        }

    def missing(self, fields: Mapping[str, Any]) -> list[str]:
        """The options whose fields have no default and are not among these."""
        free = {f.name for f in dataclasses.fields(self.module) if _has_default(f)} | {*fields}
        return [key for key in self.options if self.fields.get(key, key) not in free]


def _has_default(field):
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


_LEVELS = each(whole(1, 64), 1, 8)  # multipliers, one a level
_CHANNELS, _BLOCKS = whole(1, 4096), whole(1, 16)


def _check_kl(vae: AutoencoderKL, resolution: int) -> None:
    levels = len(vae.multipliers)
    for multiplier in vae.multipliers:
        width = vae.channels * multiplier
        if width % vae.groups:
            raise UserError(
                f"config.tokenizer.groups is {vae.groups}, which does not divide the level of "
                f"{width} channels"
            )
    for level in vae.attention_levels:
        if not 0 <= level < levels:
            raise UserError(
                f"config.tokenizer.attention_levels has {level}: levels run from 0 to {levels - 1}"
            )


def _check_qwen(vae: AutoencoderKLQwenImage, resolution: int) -> None:
    levels = len(vae.multipliers)
    if len(vae.temporal_downsample) != levels - 1:
        raise UserError(
            f"config.tokenizer.temporal_downsample is {vae.temporal_downsample}: the {levels} "
            f"levels of config.tokenizer.multipliers need {levels - 1} entries"
        )


TOKENIZERS = {
    "kl": Family(
        AutoencoderKL,
        options={
            "channels": Width,
            "multipliers": _LEVELS,
            "latent_channels": _CHANNELS,
            "num_res_blocks": _BLOCKS,
            "attention_levels": each(whole(0, 7), 0, 8),
            "middle_attention": bool,
            "quant_conv": bool,
            "groups": Width,
        },
        presets=VAE_CONFIGS,
        check=_check_kl,
    ),
    "qwenimage": Family(
        AutoencoderKLQwenImage,
        options={
            "channels": Width,
            "multipliers": _LEVELS,
            "latent_channels": _CHANNELS,
            "num_res_blocks": _BLOCKS,
            "temporal_downsample": each(bool, 0, 8),
        },
        fields={"channels": "base_dim"},
        presets=QWEN_VAE_CONFIGS,
        check=_check_qwen,
    ),
}


def family_of(tokenizer: Tokenizer) -> Family:
    """The row of a module."""
    return next(row for row in TOKENIZERS.values() if row.module is type(tokenizer))
