"""Weights from files: which loader reads what a configuration names."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import hub, latent_statistics, weight_files
from repae_jax.interop.files import read_tensors, write_safetensors
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.tables import flatten, load_flat
from repae_jax.interop.vae_files import read_weights
from repae_jax.interop.vit import load_vit
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.tokenizers.base import Tokenizer, variable_shapes
from repae_jax.runs.checkpoints import FOLDER, restore_latest


def load_teacher(path: str, model: ViT) -> dict:
    """{"params": ...} for a ViT from its publishers' files, see `load_vit`, or `save_teacher`'s.

    Raises:
      UserError: the file is missing or unreadable, or holds another model.
    """
    located = hub.locate(path, (), weight_files.TRANSFORMERS)
    if located.is_dir():
        found = weight_files.find_weights(located, weight_files.TRANSFORMERS)
        if found is None:
            raise UserError(f"{located}: model.safetensors is missing")
        located = found
    try:
        tensors = read_tensors(located)
    except UserError as error:
        if model.family != "clip" or "TorchScript" not in str(error):
            raise
        raise UserError(
            f"{path}: OpenAI's archive holds code, which is not run here; take model.safetensors "
            "of openai/clip-vit-large-patch14 from Hugging Face, or torch.save the state_dict() "
            "of clip.load(...)[0].visual"
        ) from error
    if not any(name.startswith("params/") for name in tensors):
        return load_vit(tensors, model, source=path)
    image = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return load_flat(tensors, shapes, source=path)


def save_teacher(path: str, params: Mapping, notes: Mapping[str, object]) -> None:
    """Write a ViT's parameters as .safetensors under our own paths, with `notes` as metadata."""
    metadata = {name: json.dumps(value) for name, value in notes.items()}
    write_safetensors(path, flatten({"params": params}), metadata)


def read_vae(config: ConfigDict, tokenizer: Tokenizer) -> tuple[dict[str, Any], Statistics | None]:
    """Variables of the tokenizer that `config.tokenizer.weights` names, its latents' statistics.

    The weights are whatever `PretrainedVAE.from_pretrained` reads, or a work directory that
    trained them. The statistics are those of `config.tokenizer.statistics`, or else those that came
    with the weights; None where none did.

    Raises:
      UserError: nothing is there, it is unreadable, or it holds another VAE.
    """
    name = config.tokenizer.weights
    if (pathlib.Path(name) / FOLDER).is_dir():
        variables, statistics = _read_run(name, tokenizer)
    else:
        params, statistics = read_weights(name, tokenizer)
        variables = {"params": params}
    if config.tokenizer.statistics:
        statistics = latent_statistics.read(config.tokenizer.statistics, tokenizer.latent_channels)
    return variables, statistics


def _read_run(workdir, tokenizer):
    """The tokenizer of a work directory, and the statistics that its LatentNorm arrived at."""
    state, shapes = restore_latest(workdir), variable_shapes(tokenizer)
    params = flatten(state["params"]["tokenizer"])
    variables = {"params": load_flat(params, shapes.pop("params"), source=workdir)}
    if shapes:  # collections that no run changes
        constants = state.get("frozen", {}).get("tokenizer", {})
        variables |= load_flat(flatten(constants), shapes, source=workdir)
    return variables, statistics_of(state["ema"], tokenizer.latent_channels, source=workdir)


def statistics_of(ema: Mapping | None, channels: int, *, source: str) -> Statistics | None:
    """The latents' statistics in a run's moving average; None where it trains no backbone.

    Raises:
      UserError: they are no statistics of a VAE with that many channels.
    """
    norm = (ema or {}).get("latent_norm")
    if not norm:
        return None
    keys = ("latent_norm/mean", "latent_norm/var")
    return latent_statistics.checked(norm["mean"], norm["var"], channels, source=source, keys=keys)
