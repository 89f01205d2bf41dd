"""Training checkpoints of one network: LightningDiT's, DiT's, DDT's, JiT's, and text to image."""

import argparse
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import files, fuse_dit_folder, original
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.lightningdit import PREFIX
from repae_jax.interop.original import Kind, Part
from repae_jax.models.backbones.ddt import DDT, DiTDH
from repae_jax.models.backbones.dit import DiT
from repae_jax.models.backbones.fuse_dit import FuseDiT
from repae_jax.models.backbones.jit import JiT
from repae_jax.models.backbones.lightningdit import LightningDiT
from repae_jax.models.backbones.mmdit import MMDiT
from repae_jax.models.conditioning.base import Conditioner
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.conditioning.text import Text
from repae_jax.runs.ddt_args import config_of_ddt, ddt_entries, ddt_settings
from repae_jax.runs.dit_args import config_of_dit, dit_args
from repae_jax.runs.fuse_dit_args import config_of_fuse_dit, fuse_dit_config, fuse_dit_entries
from repae_jax.runs.jit_args import as_theirs, config_of_jit, jit_args
from repae_jax.runs.lightningdit_args import (
    config_of_lightningdit,
    latent_multiplier,
    lightningdit_config,
    plain_config,
)
from repae_jax.runs.mmdit_args import config_of_mmdit, mmdit_args

CLASSES = "class labels"
_SD_CHANNELS = 4
SD_SCALE = 0.18215  # REPA and DiT multiply SD-VAE's latents by this and keep no statistics


class Foreign(NamedTuple):
    """A kind of training checkpoint: a backbone without latent statistics.

    Attributes:
      network: the backbone's class.
      part: makes its `Part`.
      config_of: (content, source=...) -> the configuration that continues it.
      settings: its entry with the settings of its training, such as "config" or "args".
      settings_of: (content, source) -> the content of that entry as plain values, {} without one.
      make_settings: a configuration -> the content of that entry.
      statistics: (content, the VAE's statistics or None, channels, source) -> the mean and variance
        by which its latents are normalized, (c,) each.
      prefix: the beginning of the names in "model".
      arrange: (content, configuration, steps, finished epochs) -> the file's entries without the
        settings.
      conditions: what may condition the backbone: `CLASSES`, or an embedding of text, a key of
        `models.conditioning.text.EMBEDDINGS`.
      heads: whether it holds projection heads.
      folder: whether it is a folder, of fuse-dit's form, and not a file.
    """

    network: type
    part: Callable[[Any], Part]
    config_of: Callable[..., ConfigDict]
    settings: str
    settings_of: Callable[[Mapping[str, Any], str], dict[str, Any]]
    make_settings: Callable[[ConfigDict], dict[str, Any]]
    statistics: Callable[..., dict[str, np.ndarray]]
    prefix: str = ""
    arrange: Callable[..., dict[str, Any]] = lambda content, config, steps, epochs: dict(content)
    conditions: tuple[str, ...] = (CLASSES,)
    heads: bool = False
    folder: bool = False

    def write(
        self,
        path: pathlib.Path,
        content: Mapping[str, Any],
        settings: Mapping[str, Any],
        steps: int,
    ) -> None:
        """Write the file's entries and the settings as the code stores them."""
        if self.folder:
            fuse_dit_folder.write(path, content, settings, steps)
            return
        stored = argparse.Namespace(**settings) if self.settings == "args" else dict(settings)
        files.write_torch(path, {**content, self.settings: stored})


def scaled(channels: int) -> dict[str, np.ndarray]:
    """The statistics of latents that are multiplied by `SD_SCALE`."""
    return {"mean": np.zeros(channels), "var": np.full(channels, SD_SCALE**-2.0)}


def _unscaled(channels):
    return {"mean": np.zeros(channels), "var": np.ones(channels)}


def _require(statistics, name, source):
    if statistics is None:
        raise UserError(
            f"{source}: {name} normalizes latents by statistics, and the VAE of "
            "config.tokenizer.weights has no latent statistics: name its latents_stats.pt with "
            "--config.tokenizer.statistics"
        )


def _normalized_or_scaled(content, statistics, channels, source):
    if statistics is None and channels == _SD_CHANNELS:
        return scaled(channels)
    _require(statistics, "a DDT", source)
    return statistics


def _of_the_vae(content, statistics, channels, source):
    _require(statistics, "fuse-dit", source)
    return statistics


def _scaled(content, statistics, channels, source):
    return scaled(channels)


def _normalized(content, statistics, channels, source):
    _require(statistics, "LightningDiT", source)
    multiplier = latent_multiplier(content, source)
    return {"mean": statistics["mean"], "var": statistics["var"] / multiplier**2}


FOREIGN: dict[Kind, Foreign] = {
    "lightningdit": Foreign(
        LightningDiT,
        original.lightningdit_part,
        config_of_lightningdit,
        "config",
        plain_config,
        lightningdit_config,
        _normalized,
        PREFIX,
    ),
    "dit": Foreign(
        DiT,
        original.dit_part,
        config_of_dit,
        "args",
        arguments_of,
        dit_args,
        _scaled,
    ),
    **{
        kind: Foreign(
            network,
            original.ddt_part,
            config_of_ddt,
            "config",
            plain_config,
            ddt_settings,
            _normalized_or_scaled,
            arrange=ddt_entries,
            conditions=conditions,
        )
        for kind, network, conditions in (
            ("ditdh", DiTDH, (CLASSES,)),
            ("ddt", DDT, (CLASSES, "rms_norm")),
        )
    },
    "jit": Foreign(
        JiT,
        original.jit_part,
        config_of_jit,
        "args",
        arguments_of,
        jit_args,
        lambda content, statistics, channels, source: _unscaled(channels),
        arrange=as_theirs,
    ),
    "fuse-dit": Foreign(
        FuseDiT,
        original.fuse_dit_part,
        config_of_fuse_dit,
        "config",
        plain_config,
        fuse_dit_config,
        _of_the_vae,
        arrange=fuse_dit_entries,
        conditions=("gemma",),
        folder=True,
    ),
    "mmdit": Foreign(
        MMDiT,
        original.mmdit_part,
        config_of_mmdit,
        "args",
        arguments_of,
        mmdit_args,
        _scaled,
        arrange=lambda content, config, steps, epochs: {**content, "steps": steps},
        conditions=("linear",),
        heads=True,
    ),
}


def foreign_of(backbone: Any) -> Kind | None:
    """The kind of the checkpoints that hold such a backbone alone; None for others."""
    found = (kind for kind, row in FOREIGN.items() if type(backbone) is row.network)
    return next(found, None)


def condition_of(conditioner: Conditioner) -> str:
    """What a conditioner conditions a backbone by, see `Foreign`; "" for other conditioners."""
    if isinstance(conditioner, Text):
        return conditioner.embedding
    return CLASSES if isinstance(conditioner, ClassLabel) else ""
