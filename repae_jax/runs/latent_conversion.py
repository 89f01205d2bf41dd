"""Conversion of cached latents: LightningDiT's shards and the caches that `encode` writes."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.validate import validate
from repae_jax.data import latents
from repae_jax.data.identity import names_checksum
from repae_jax.data.shard_writer import ShardWriter, write_shards
from repae_jax.data.source import check_label
from repae_jax.errors import UserError, warn
from repae_jax.interop import latent_statistics
from repae_jax.interop.latent_shards import (
    STATISTICS,
    LatentShards,
    open_shards,
    write_shard,
    write_statistics,
)
from repae_jax.runs.build import build_models, latent_shape
from repae_jax.runs.fingerprint import tokenizer_sha256
from repae_jax.runs.weights import read_vae
from repae_jax.utils.atomic_files import replacing

_PER_SHARD = 4096  # images; LightningDiT's own files have 10,000, which take more memory


def import_latents(
    folder: pathlib.Path,
    output: pathlib.Path,
    config: ConfigDict,
    *,
    multiplier: float = 1.0,
    per_shard: int = _PER_SHARD,
    progress: bool = True,
) -> dict[str, Any]:
    """Turn LightningDiT's cached latents into a cache of latents that training reads.

    The posterior of an image becomes its one sample, without noise. A killed call resumes, and ends
    with the same bytes.

    Args:
      folder: their folder.
      output: a new folder, or one that a call with the same arguments has begun.
      config: the configuration whose VAE made the latents; nothing in their files names it.
      multiplier: `data.latent_multiplier` of their configuration, above 0: latents are
        (z - mean) / std * multiplier.
      per_shard: images in a shard.
      progress: show a bar.

    Returns:
      The manifest.

    Raises:
      UserError: a file is missing or damaged, the latents do not fit the configuration, a label is
        out of range, or the output folder has other content.
    """
    if not (np.isfinite(multiplier) and multiplier > 0):
        raise UserError(f"--multiplier is {multiplier}: give a number above 0")
    shards = open_shards(folder)
    validate(config)
    if not config.tokenizer.weights:
        raise UserError(
            "config.tokenizer.weights is empty: name the VAE that made the latents "
            "(--config.tokenizer.weights=PATH)"
        )
    models = build_models(config)
    latents.check_shape(folder, {"latent_shape": shards.shape}, latent_shape(config, models))
    variables, own = read_vae(config, models.tokenizer)
    statistics = _statistics(shards, own, multiplier)
    made = {
        "source": {"source": "lightningdit"},
        "data": {
            "count": len(shards),
            "files": names_checksum(f"{name} {count}" for name, count in shards.counts.items()),
            "bytes": sum((folder / name).stat().st_size for name in shards.counts),
        },
        "vae": tokenizer_sha256(variables),
        "latent_shape": list(shards.shape),
        "resolution": config.data.resolution,
        "mirrored": True,
        "images": False,
        "teachers": {},
        "dtype": shards.dtype,
        "multiplier": multiplier,
    }
    manifest = {
        "kind": latents.KIND,
        "num_classes": config.data.num_classes,
        "statistics": {name: values.reshape(-1).tolist() for name, values in statistics.items()},
    }
    write = functools.partial(_write, shards, config.data.num_classes)
    return write_shards(
        output, len(shards), per_shard, write, made, manifest=manifest, progress=progress
    )


def export_latents(
    folder: pathlib.Path, output: pathlib.Path, *, seed: int = 0, progress: bool = True
) -> int:
    """Write a cache of latents as LightningDiT's shards, one sample of each posterior.

    A sample depends on `seed`, the image and whether it is mirrored, alone.

    Args:
      folder: the cache.
      output: a folder that does not exist, or is empty.
      seed: of the samples.
      progress: show a bar.

    Returns:
      The number of images.

    Raises:
      UserError: the cache is damaged, or lacks the mirrored images' latents.
    """
    from tqdm import tqdm

    source = latents.open_latents(folder)
    if not source.manifest["made"]["mirrored"]:
        raise UserError(
            f"{folder}: holds no mirrored latents, which LightningDiT's shards have: encode with "
            "--mirrored"
        )
    with replacing(output) as temporary, tqdm(total=len(source), disable=not progress) as bar:
        temporary.mkdir()
        for number, first in enumerate(range(0, len(source), _PER_SHARD)):
            indexes = range(first, min(first + _PER_SHARD, len(source)))
            records = [source.records[index] for index in indexes]
            both = [
                [_sample(r, prefix, (seed, i, k)) for i, r in zip(indexes, records, strict=True)]
                for k, prefix in enumerate(("", latents.MIRRORED))
            ]
            write_shard(temporary, number, *both, [record["label"] for record in records])
            bar.update(len(indexes))
        write_statistics(temporary, latents.statistics_of(source))
    return len(source)


def _write(
    shards: LatentShards, num_classes: int, indexes: range, writer: ShardWriter
) -> Mapping[str, Any]:
    for name, latent, mirrored, label in shards.read(indexes):
        writer.write(
            {
                "mean": latent,
                f"{latents.MIRRORED}mean": mirrored,
                "label": int(check_label(label, num_classes, name)),
            }
        )
    return {}


def _statistics(shards, own, multiplier):
    """LatentNorm's statistics by which LightningDiT normalizes these latents.

    They are those of their own file, or without it those of the VAE.
    """
    path, channels = shards.folder / STATISTICS, shards.shape[-1]
    if path.is_file():
        found = latent_statistics.read(path, channels)
    elif own is not None:
        found = own
    else:
        raise UserError(
            f"{shards.folder}: {STATISTICS} is missing, and the VAE has no latent statistics "
            "either: put it there, or name one with --config.tokenizer.statistics"
        )
    statistics = {"mean": found["mean"], "var": found["var"] / np.float32(multiplier) ** 2}
    if own is not None and not all(
        np.allclose(statistics[k], own[k], rtol=1e-3, atol=1e-3) for k in own
    ):
        way_out = "name weights of the VAE that have none"
        if multiplier == 1:
            way_out = f"set --config.tokenizer.statistics={path} when training"
        warn(
            f"{shards.folder}: its latents are normalized by other statistics than the VAE's own, "
            f"which training prefers: {way_out}"
        )
    return statistics


def _sample(record, prefix, seed):
    """One sample (h, w, c) of a record's posterior, float32; its mean if there is no deviation."""
    mean = np.asarray(record[f"{prefix}mean"], np.float32)
    std = record.get(f"{prefix}std")
    if std is None:
        return mean
    noise = np.random.default_rng(seed).standard_normal(mean.shape, np.float32)
    return mean + np.asarray(std, np.float32) * noise
