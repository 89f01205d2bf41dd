"""Weights from files: which loader reads what a configuration names."""

import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop.dinov2 import load_dinov2
from repae_jax.interop.files import read_tensors
from repae_jax.interop.original import load_vae
from repae_jax.interop.tables import check, flatten, unflatten
from repae_jax.models.autoencoder_kl import AutoencoderKL
from repae_jax.models.vit import ViT


def load_teacher(path: str, model: ViT) -> dict:
    """{"params": ...} for a ViT from DINOv2's files (any of its namings) or `save_teacher`'s.

    Raises:
      UserError: the file is missing or unreadable, or holds another model.
    """
    tensors = read_tensors(path)
    if not any(name.startswith("params/") for name in tensors):
        return load_dinov2(tensors, model, source=path)
    image = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    check(tensors, {name: s.shape for name, s in flatten(shapes).items()}, source=path)
    return unflatten(tensors)


def save_teacher(path: str, params: Mapping, notes: Mapping[str, object]) -> None:
    """Write a ViT's parameters as .safetensors under our own paths, with `notes` as metadata."""
    from safetensors.numpy import save

    from repae_jax.evaluation.figures import write_atomically

    flat = {name: np.ascontiguousarray(a) for name, a in flatten({"params": params}).items()}
    metadata = {name: json.dumps(value) for name, value in notes.items()}
    write_atomically(path, save(flat, metadata))


def read_vae(path: str, vae: AutoencoderKL) -> dict:
    """Parameters of a VAE from a file with LDM names, or from a work directory that trained one.

    Raises:
      UserError: nothing is there, it is unreadable, or it holds another VAE.
    """
    if pathlib.Path(path).is_dir():
        from repae_jax.training.checkpoints import restore_latest

        tensors = flatten(restore_latest(path)["params"]["vae"])
        images = jnp.zeros((1, vae.factor, vae.factor, vae.image_channels))
        noise = jnp.zeros((1, 1, 1, vae.latent_channels))
        shapes = jax.eval_shape(vae.init, jax.random.key(0), images, noise)["params"]
        check(tensors, {name: s.shape for name, s in flatten(shapes).items()}, source=path)
        return unflatten(tensors)
    return load_vae(read_tensors(path), vae, source=path)


def read_vae_statistics(config: ConfigDict, vae: AutoencoderKL) -> dict | None:
    """LatentNorm's {"mean": (c,), "var": (c,)} as published beside a VAE, or None if nothing is.

    Reads `config.vae.statistics`, or for weights `X.pt` the file `X-latents-stats.pt` beside it,
    which holds `latents_scale` = 1 / std and `latents_bias` = mean.

    Raises:
      UserError: the file holds something else, or another number of channels.
    """
    path = config.vae.statistics
    if not path:
        weights = pathlib.Path(config.vae.weights)
        beside = weights.with_name(f"{weights.stem}-latents-stats.pt")
        if not beside.is_file():
            return None
        path = str(beside)
    tensors = read_tensors(path)
    statistics = {}
    for name in ("latents_bias", "latents_scale"):
        if name not in tensors:
            raise UserError(f"{path}: tensor {name!r} is missing")
        statistics[name] = np.asarray(tensors[name], np.float32).reshape(-1)
        if statistics[name].shape != (vae.latent_channels,):
            raise UserError(
                f"{path}: {name!r} has {statistics[name].size} values, the VAE "
                f"{vae.latent_channels} latent channels"
            )
    return {"mean": statistics["latents_bias"], "var": statistics["latents_scale"] ** -2.0}
