"""The number of groups of a VAE's GroupNorm, which its tensors do not determine."""

import pathlib
from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.utils.schema import Width, parse_json


def groups_in(content: Mapping[str, Any], path: pathlib.Path, dimensions: Mapping[str, Any]) -> int:
    """The groups of a VAE's GroupNorm: those that its file states, or the default.

    All published files have the default number.

    Args:
      content: the file's content.
      path: the file; the metadata of safetensors state the number.
      dimensions: the VAE's "channels" and "multipliers".

    Raises:
      UserError: the number is invalid, or does not divide the widths.
    """
    if path.suffix == ".safetensors":
        text = files.read_metadata(path).get("groups", str(AutoencoderKL.groups))
        groups = parse_json(text, Width, source=f"{path}: its number of groups")
    else:
        own = _own_config(content, f"{path}: its argument 'repae_jax'")
        groups = own.get("tokenizer", own.get("vae", {})).get("groups") or AutoencoderKL.groups
    narrow = [m * dimensions["channels"] for m in dimensions["multipliers"]]
    if any(width % groups for width in narrow):
        raise UserError(
            f"{path}: its widths {narrow} do not divide into the {groups} groups that published "
            "VAEs have, and the file does not state its own: keep it as a diffusers folder"
        )
    return groups


def _own_config(content, source):
    """The configuration that our own checkpoints add to the original's arguments; else {}."""
    args = content.get("args")
    text = (args if isinstance(args, Mapping) else getattr(args, "__dict__", {})).get("repae_jax")
    return parse_json(text, _Own, source=source) if text is not None else {}


class _Groups(TypedDict, total=False):
    groups: Width | None


class _Own(TypedDict, total=False):
    tokenizer: _Groups
    vae: _Groups  # the section's name in configurations of version 1
