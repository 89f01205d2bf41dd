"""Conversion between the checkpoints of RAE's and diffusion-bench's trainings and configurations.

Both hold step, epoch, model, ema, optimizer and scheduler, and no settings: those are in a YAML
file beside them. Our own files keep the configuration under "config", which they ignore.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.defaults import tokenizer
from repae_jax.config.published import ddt256
from repae_jax.config.published_text import ddt_text256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.ddt import infer_dimensions
from repae_jax.runs.lightningdit_args import plain_config
from repae_jax.runs.optimizers import rate_at
from repae_jax.runs.original_args import OURS, backbone_of
from repae_jax.runs.text_args import check_text_width
from repae_jax.utils.schema import check_schema

_VAES = {  # channels -> (VAE, factor)
    4: ("f8d4", 8),
    16: ("f8d16", 8),
    32: ("f16d32", 16),
    384: ("rae-dinov2-small", 16),
    768: ("rae-dinov2-base", 16),
    1024: ("rae-dinov2-large", 16),
}
_HEAD = ("head_size", "head_depth", "head_heads")
_OPTIONS = {"ddt": ("time_tokens", "class_tokens"), "ditdh": ("qk_norm",)}


def config_of_ddt(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a training of RAE's or diffusion-bench's.

    Its network follows from the weights, its training is the published one of its family, of
    classes or of text. The tokenizer's weights are no part of it.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: the weights are of another backbone, of latents without a VAE known here, or of
        another text encoder's states.
    """
    ours = plain_config(content, source).get(OURS)
    if ours is not None:
        check_schema({OURS: ours}, dict[str, str], source=f"{source}: config.")
        return from_json(ours, source=source)
    found = infer_dimensions(content["ema"], source=source)
    if found.get("class_token_dim"):
        raise UserError(
            f"{source}: its network denoises a class token (REG), but the file holds no heads for "
            "the teacher that gives it, without which no run here trains: a checkpoint of "
            "diffusion-bench is read without REG"
        )
    vae, factor = _VAES.get(found["latent_channels"], ("", 0))
    if not vae:
        raise UserError(
            f"{source}: its latents have {found['latent_channels']} channels, as those of no VAE "
            f"here ({', '.join(map(str, _VAES))})"
        )
    family = found["family"]
    resolution = found["latent_size"] * factor
    values = found["latent_channels"] * found["latent_size"] ** 2
    if "text_width" in found:
        config = ddt_text256(values)
        config.text_encoder.length = found["text_length"]
        check_text_width(found["text_width"], config, source)
        options = ("time_tokens",)
    else:
        config = ddt256(values)
        config.data.num_classes = found["num_classes"] - 1
        options = _OPTIONS[family]
    config.name = family
    config.backbone = backbone_of(found, family, (*_HEAD, *options))
    config.tokenizer = tokenizer(vae)
    config.data.resolution = resolution
    if family == "ditdh":  # RAE's training and samples
        config.objective.least_time = 0.0
        config.time.highest = 0.999
        config.sampling.update(steps=49, last_time=0.001)
    return apply_recipe(config, "vanilla")


def ddt_settings(config: ConfigDict) -> dict[str, str]:
    """The "config" of our own files: the configuration as JSON."""
    return {OURS: to_json(config)}


def ddt_entries(
    content: Mapping[str, Any], config: ConfigDict, step: int, epoch: int
) -> dict[str, Any]:
    """The entries of their checkpoint: the networks, and the states of optimizer and schedule.

    The schedule's state is that of PyTorch's LambdaLR.

    Args:
      content: "model", "ema" and "opt".
      config: the run's configuration.
      step: steps taken.
      epoch: finished epochs.
    """
    first = config.optimizer.backbone.learning_rate
    rate = rate_at(step, config.optimizer.backbone)
    groups = [
        {**group, "lr": rate, "initial_lr": first} for group in content["opt"]["param_groups"]
    ]
    return {
        "step": step,
        "epoch": epoch,
        "model": content["model"],
        "ema": content["ema"],
        "optimizer": {**content["opt"], "param_groups": groups},
        "scheduler": {
            "base_lrs": [first],
            "last_epoch": step,
            "_step_count": step + 1,
            "_last_lr": [rate],
            "lr_lambdas": [None],
        },
    }
