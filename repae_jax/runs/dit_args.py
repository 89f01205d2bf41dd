"""Conversion between the command-line arguments of DiT's training and configurations."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config import defaults
from repae_jax.config.published import dit256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.sit import infer_dimensions
from repae_jax.models.backbones.dit import PRESETS
from repae_jax.models.backbones.transformer import preset_of
from repae_jax.runs.original_args import OURS, assign, look_up
from repae_jax.utils.schema import check_schema, whole

_FACTOR = 8  # of SD-VAE, the one VAE of DiT's code
# their argument -> our key with the same value
_SAME = {
    "num_classes": "data.num_classes",
    "image_size": "data.resolution",
    "global_seed": "seed",
    "global_batch_size": "batch_size",
    "ckpt_every": "run.checkpoint_every",
}


class _Arguments(TypedDict, total=False):
    num_classes: whole(1, 2**20)
    image_size: whole(1, 2**16)
    global_seed: whole(0, 2**32 - 1)
    global_batch_size: whole(1, 2**20)
    ckpt_every: whole(1, 2**31 - 1)
    repae_jax: str


def config_of_dit(
    content: Mapping[str, Any], *, source: str, num_heads: int | None = None
) -> ConfigDict:
    """Make the configuration that continues a DiT's training.

    Its network follows from the weights, its training from the arguments, where they are there. The
    VAE's weights are no part of it.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.
      num_heads: the heads, where they are known; the weights tell them of published widths alone.

    Raises:
      UserError: the weights are of no published DiT, or an argument has a wrong type.
    """
    args = arguments_of(content, source)
    check_schema(args, _Arguments, source=f"{source}: its argument ")
    if OURS in args:
        return from_json(args[OURS], source=source)
    found = infer_dimensions(content["ema"], source=source, num_heads=num_heads)
    keys = ("hidden_size", "depth", "num_heads", "patch_size")
    shape = {key: found[key] for key in keys}
    arch = preset_of(found, PRESETS)
    if arch is None or found["latent_channels"] != 4:
        raise UserError(
            f"{source}: a DiT of {shape} and {found['latent_channels']} latent channels is none of "
            "the published: give a configuration with --config"
        )
    config = dit256()
    config.name = "dit"
    config.backbone = defaults.backbone(arch)
    config.data.resolution = found["latent_size"] * _FACTOR
    config.data.num_classes = found["num_classes"] - 1
    for theirs, ours in _SAME.items():
        if theirs in args:
            assign(config, (ours,), args[theirs])
    return apply_recipe(config, "vanilla")


def dit_args(config: ConfigDict) -> dict[str, Any]:
    """DiT's arguments for this configuration; "repae_jax" holds all of it as JSON."""
    args = {theirs: look_up(config, ours) for theirs, ours in _SAME.items()}
    return {"model": config.backbone.arch} | args | {OURS: to_json(config)}
