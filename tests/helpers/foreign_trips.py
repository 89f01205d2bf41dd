"""Checkpoints of another code that become runs, and come back: what their tests share."""

import dataclasses
import pathlib

import jax
import numpy as np
import parity
import tiny
import torch

from repae_jax.cli import main
from repae_jax.interop.detect_format import detect
from repae_jax.interop.vae_files import StoredVAE, write_ldm
from repae_jax.runs.build import build_models
from repae_jax.runs.original_import import import_run


@dataclasses.dataclass
class Trip:
    """Their models, their checkpoint, its run, and the checkpoint that this becomes.

    `statistics` are the mean and deviation of the latents, where a file beside the VAE has them.
    """

    model: torch.nn.Module
    ema: torch.nn.Module
    checkpoint: pathlib.Path
    workdir: pathlib.Path
    exported: pathlib.Path
    config: object
    statistics: tuple = ()


def make_trip(model, ema, checkpoint, config, statistics=(), *, words=()) -> Trip:
    """Import a checkpoint as a run, and export this again, in the checkpoint's folder.

    `words` are further ones of the command that exports.
    """
    folder = checkpoint.parent
    content = detect(checkpoint).content
    import_run(content, folder / "run", config, source=str(checkpoint), progress=False)
    exported = folder / "exported" / checkpoint.name
    assert main(["convert", str(folder / "run"), str(exported), "--quiet", *words]) == 0
    return Trip(model, ema, checkpoint, folder / "run", exported, config, statistics)


def write_statistics(folder: pathlib.Path, channels: int) -> tuple[str, np.ndarray, np.ndarray]:
    """A file of latent statistics as LightningDiT writes it: its path, mean and deviation."""
    mean, std = parity.normal(channels, seed=4), 1 + np.arange(channels, dtype=np.float32)
    shaped = (torch.tensor(a).reshape(1, -1, 1, 1) for a in (mean, std))
    torch.save(dict(zip(("mean", "std"), shaped, strict=True)), folder / "latents_stats.pt")
    return str(folder / "latents_stats.pt"), mean, std


def write_vae(folder: pathlib.Path) -> pathlib.Path:
    """The tiny VAE under LDM's names, without statistics; its path."""
    module = build_models(tiny.get_config("vae")).tokenizer
    side = 32 // module.factor
    x, noise = (
        np.zeros((1, *shape), np.float32)
        for shape in ((32, 32, 3), (side, side, module.latent_channels))
    )
    params = jax.device_get(parity.quick_jit(module.init)(jax.random.key(0), x, noise))["params"]
    write_ldm(folder / "vae.safetensors", StoredVAE(module, params, {}, None))
    return folder / "vae.safetensors"
