"""Files of a part of a RAE: its authors' decoder, and the encoder alone.

RAE's decoder is model.pt with the statistics stat.pt beside it, RAEv2's decoder.pt with stats.pt.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import (
    files,
    hub,
    latent_statistics,
    rae,
    rae_config,
    tables,
    weight_files,
)
from repae_jax.interop.extract import Extract, extract
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.models.tokenizers.rae import RAE, RAE_CONFIGS
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import read_json

_CONFIG = "config.json"
_STATISTICS = ("stat.pt", "stats.pt")  # the authors' names, of RAE and RAEv2
_ENCODER = tuple(f"encoder{suffix}" for suffix in files.SUFFIXES)
# (encoder, width) -> the repository of its weights, from which the authors' code takes them
_PUBLISHED = {
    ("dinov2", 384): "facebook/dinov2-with-registers-small",
    ("dinov2", 768): "facebook/dinov2-with-registers-base",
    ("dinov2", 1024): "facebook/dinov2-with-registers-large",
    ("siglip2", 768): "google/siglip2-base-patch16-256",
    ("mae", 768): "facebook/vit-mae-base",
    ("dinov3", 1024): "facebook/dinov3-vitl16-pretrain-lvd1689m",
}


def decoder_in(content: Mapping[str, Any], *, source: str) -> Extract | None:
    """The decoder in a file of the authors'; None if the file holds something else.

    Raises:
      UserError: it holds several.
    """
    found = extract(content, rae.DECODER_SIGN, source=source)
    named = found and any(".attention.attention." in name for name in found.tensors)
    return found if named else None


def read_decoder(found: Extract, model: RAE, path: pathlib.Path) -> dict[str, Any]:
    """The variables of `model` from the authors' decoder, and from its encoder's file.

    The encoder is in the file encoder.safetensors (or .pt, .bin, ...) beside `path`, or else in its
    publisher's repository on the hub, or in pretrained/.

    Raises:
      UserError: a file is missing or damaged, or holds another network.
    """
    variables = rae.load_decoder(found.tensors, model, original=True, source=str(path))
    beside = _beside(path, _ENCODER)
    if beside is None:
        beside = _published_encoder(model, path)
    tensors = files.read_tensors(beside)
    variables["constants"] |= rae.load_encoder(tensors, model, source=str(beside))
    return variables


def infer_model(found: Extract, path: pathlib.Path, dtype: Any) -> RAE:
    """The module of the authors' decoder; its encoder is the published one that the file beside is.

    Raises:
      UserError: there is no encoder beside it, or none of a published RAE.
    """
    fields = rae_config.infer_decoder(found.tensors, source=str(path))
    beside = _beside(path, _ENCODER)
    if beside is None:
        raise UserError(
            f"{path}: RAE's decoder without its encoder: put the encoder's file (model.safetensors "
            f"of one of {', '.join(_PUBLISHED.values())}) beside it as {_ENCODER[0]}"
        )
    tensors, fitting = files.read_tensors(beside), {}
    for name, preset in RAE_CONFIGS.items():
        if preset["latent_channels"] != fields["latent_channels"]:
            continue
        model = RAE(**{**preset, **fields}, dtype=dtype)
        try:
            rae.load_encoder(tensors, model, source=str(beside))
        except UserError:
            continue
        fitting[name] = model
    if len(fitting) > 1:
        raise UserError(
            f"{path}: its tensors do not tell which blocks of the encoder it decodes: read it in a "
            f"run, whose --config.tokenizer.arch is one of {', '.join(fitting)}"
        )
    if fitting:
        return next(iter(fitting.values()))
    raise UserError(
        f"{beside}: not the encoder of a published RAE with {fields['latent_channels']} channels: "
        f"put one of {', '.join(_PUBLISHED.values())} there"
    )


def statistics_beside(path: pathlib.Path, channels: int) -> Statistics | None:
    """The latent statistics in the file beside the authors' decoder; None if there is none.

    Raises:
      UserError: the file is damaged, or both authors' files are there.
    """
    found = [p for name in _STATISTICS if is_file_there(p := path.with_name(name))]
    if len(found) > 1:
        raise UserError(
            f"{path}: both {' and '.join(_STATISTICS)} are beside it: keep each decoder in a "
            "folder with its own statistics"
        )
    return latent_statistics.read(found[0], channels) if found else None


def statistics_path(path: pathlib.Path, model: RAE) -> pathlib.Path:
    """Where the authors keep the latent statistics of the decoder `path`."""
    return path.with_name(_STATISTICS[0] if model.normalized_pixels else _STATISTICS[1])


def write_decoder(
    path: pathlib.Path, model: RAE, variables: Mapping[str, Any], statistics: Statistics | None
) -> None:
    """Write a decoder as its authors' file, and beside it the latent statistics.

    The table of positions is in the file where the authors' code would compute another one, and
    where square statistics tell its grid.

    Raises:
      UserError: a weight is not finite, the decoder has another number of heads than the authors'
        of its width, the name is that of the statistics or the encoder, or a file cannot be
        written.
    """
    beside = statistics_path(path, model)
    if path.name in (*_STATISTICS, *_ENCODER):
        raise UserError(f"{path}: the decoder's file needs a name of its own, such as model.pt")
    heads = rae_config.heads_of(model.decoder_width)
    if model.decoder_heads != heads:
        raise UserError(
            f"{path}: the decoder has {model.decoder_heads} heads, but its authors' of width "
            f"{model.decoder_width} has {heads}, and such a file does not tell: write a diffusers "
            "folder"
        )
    tensors = rae.export_decoder(jax.device_get(variables), original=True)
    tables.require_finite(tensors, path)
    grid = rae.BASE_GRID if model.position_step != 1.0 else 0
    if statistics is not None:
        rows, *columns = np.shape(statistics["var"])[:-1] or (0,)
        grid = rows if columns == [rows] else grid
        latent_statistics.write_of_rae(beside, statistics)
    if grid and not model.table_grid:
        tensors[rae.TABLE] = rae.table_of(model, grid)
    files.write_flat(path, tensors, {})


def describe_decoder(tensors: Mapping[str, np.ndarray], source: str) -> str:
    """The authors' decoder in one line."""
    fields = rae_config.infer_decoder(tensors, source=source)
    return (
        f"{fields['latent_channels']} channels -> {fields['factor']} x {fields['factor']} pixels: "
        f"ViT of width {fields['decoder_width']}, depth {fields['decoder_depth']}"
    )


def read_encoder(name: str | pathlib.Path, module: nn.Module) -> dict[str, Any] | None:
    """The variables {"constants": ...} of a RAE from its encoder's weights alone.

    None if `module` is no RAE, or `name` holds more: a folder of diffusers', the authors' decoder.

    Raises:
      UserError: nothing is there, it is damaged, or it is another encoder's.
    """
    if not isinstance(module, RAE):
        return None
    path = hub.locate(name, (_CONFIG,))
    folder = path if path.is_dir() else path.parent
    if (folder / _CONFIG).is_file() and "_class_name" in read_json(folder / _CONFIG):
        return None
    if path.is_dir():
        path = hub.locate(name, (_CONFIG,), weight_files.TRANSFORMERS)
        found = weight_files.find_weights(path, weight_files.TRANSFORMERS)
        if found is None:
            raise UserError(f"{path}: model.safetensors is missing")
        path = found
    content = files.read_tensors(path)
    if decoder_in(content, source=str(path)) is not None:
        return None
    return {"constants": rae.load_encoder(content, module, source=str(path))}


def _beside(path, names):
    """The first file of these names in the folder of `path`, or None."""
    return next((p for name in names if is_file_there(p := path.with_name(name))), None)


def encoder_beside(decoder: str, model: RAE) -> str | None:
    """The hub's name of the encoder that a decoder's file needs beside it and lacks.

    None if `decoder` is no such file, has its encoder beside it, or no published one fits.
    """
    path = pathlib.Path(decoder.removeprefix(hub.PREFIX))
    path = path if path.exists() else hub.PRETRAINED / path
    if path.suffix not in files.SUFFIXES or path.name in _ENCODER or _beside(path, _ENCODER):
        return None
    name = _PUBLISHED.get((model.encoder, model.latent_channels))
    return name and f"{hub.PREFIX}{name}"


def _published_encoder(model, path):
    name = _PUBLISHED.get((model.encoder, model.latent_channels))
    if name is None:
        raise UserError(
            f"{path}: RAE's decoder without its encoder: put the encoder's file beside it as "
            f"{_ENCODER[0]}"
        )
    folder = hub.locate(f"{hub.PREFIX}{name}", (), weight_files.TRANSFORMERS)
    found = weight_files.find_weights(folder, weight_files.TRANSFORMERS)
    if found is None:
        raise UserError(f"{folder}: model.safetensors is missing")
    return found
