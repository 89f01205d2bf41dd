"""Conversion between the arguments of REPA's text-to-image training and configurations."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.published_text import coco256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.mmdit import infer_dimensions
from repae_jax.runs.original_args import (
    OURS,
    SAME,
    Arguments,
    assign,
    backbone_of,
    look_up,
    original_teacher,
    teachers_from_widths,
    teachers_of,
)
from repae_jax.runs.text_args import check_text_width
from repae_jax.utils.schema import check_schema

_CHANNELS, _FACTOR = 4, 8  # of SD-VAE, the one VAE of its code
# arguments of REPA's that its text-to-image code reads; its data set drops captions by itself
_READ = (
    "seed", "batch_size", "resolution", "encoder_depth", "path_type", "proj_coeff", "weighting",
    "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "adam_weight_decay",
    "max_grad_norm", "max_train_steps", "checkpointing_steps", "sampling_steps",
)  # fmt: skip


def config_of_mmdit(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a text-to-image training of REPA's.

    Its network follows from the weights, its training from the arguments, where they are there. The
    VAE's weights are no part of it.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: the latents are not SD-VAE's or the text not CLIP's, a teacher is unknown, or an
        argument has a wrong type.
    """
    args = arguments_of(content, source)
    check_schema(args, Arguments, source=f"{source}: its argument ")
    if OURS in args:
        return from_json(args[OURS], source=source)
    found = infer_dimensions(content["ema"], source=source)
    config = coco256()
    check_text_width(found["text_width"], config, source)
    if found["latent_channels"] != _CHANNELS:
        raise UserError(
            f"{source}: its latents have {found['latent_channels']} channels, those of REPA's "
            f"training {_CHANNELS}: give a configuration with --config"
        )
    config.name = str(args.get("exp_name") or "mmdit")
    config.dtype = "float32" if args.get("mixed_precision") == "no" else "bfloat16"
    config.backbone = backbone_of(found, "mmdit", ())
    config.data.resolution = found["latent_size"] * _FACTOR
    for theirs in _READ:
        if args.get(theirs) is not None:
            assign(config, SAME[theirs], args[theirs])
    teachers = args.get("enc_type") or teachers_from_widths(found["teacher_dims"])
    config.teachers = teachers_of(teachers, source)
    return apply_recipe(config, "repa" if config.teachers else "vanilla")


def mmdit_args(config: ConfigDict) -> dict[str, Any]:
    """The arguments for training this configuration; "repae_jax" holds all of it as JSON."""
    names = [original_teacher(entry.arch) or name for name, entry in config.teachers.items()]
    return {theirs: look_up(config, SAME[theirs][0]) for theirs in _READ} | {
        "exp_name": config.name,
        "enc_type": ",".join(names) or "None",
        "mixed_precision": "no" if config.dtype == "float32" else "bf16",
        "prediction": "v",
        OURS: to_json(config),
    }
