"""The trained networks of a run as the parts of an original's training checkpoint."""

import dataclasses

from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import original
from repae_jax.interop.adamw import parameter_groups
from repae_jax.interop.original import OPTIMIZERS, Part
from repae_jax.models.backbones.sit import SiT
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.runs.foreign_backbones import CLASSES, FOREIGN, condition_of, foreign_of
from repae_jax.runs.original_args import args_from_config
from repae_jax.runs.provenance import Provenance, blank_provenance


def trained_parts(
    models: Models, config: ConfigDict, source: str, *, statistics: bool
) -> dict[str, Part]:
    """{network: its part} of the trained networks, in the order of the original's checkpoint.

    Args:
      models: the run's networks.
      config: the run's configuration.
      source: the name of the run or of the checkpoint, for errors.
      statistics: whether a SiT's part has latent statistics.

    Raises:
      UserError: no original's checkpoint holds these networks.
    """
    if models.backbone is None:
        raise UserError(
            f"{source}: trains no backbone, so it cannot become an original's checkpoint"
        )
    backbone = models.backbone
    kind, condition = foreign_of(backbone), condition_of(backbone.conditioner)
    known = FOREIGN[kind].conditions if kind else (CLASSES,)
    if (kind is None and type(backbone) is not SiT) or condition not in known:
        raise UserError(
            f"{source}: an original's checkpoint holds one of {_known()}, this run a "
            f"{type(backbone).__name__} with {_in_words(condition, backbone.conditioner)}: convert "
            "its tokenizer alone (--to diffusers)"
        )
    if kind:
        parts = {"backbone": FOREIGN[kind].part(backbone)}
    elif statistics and getattr(models.tokenizer, "statistics_by_position", False):
        raise UserError(
            f"{source}: the original's checkpoint has one latent statistic per channel, but those "
            f"of a {type(models.tokenizer).__name__} are by position, so this run has no such file"
        )
    else:
        parts = {"backbone": original.sit_part(backbone, statistics=statistics)}
    if "tokenizer" not in config.train:
        return parts
    if kind and FOREIGN[kind].folder:  # its code takes the VAE as diffusers' folder
        return parts
    if kind:
        raise UserError(
            f"{source}: a checkpoint of {type(backbone).__name__} holds no VAE, but this run "
            "trains one: convert the VAE alone (--to diffusers)"
        )
    judge = models.discriminator
    patchgan = isinstance(judge, PatchDiscriminator)
    if not isinstance(models.tokenizer, AutoencoderKL) or not patchgan:
        own = "its discriminator" if patchgan else f"a {type(judge).__name__}"
        raise UserError(
            f"{source}: the original's checkpoint holds an AutoencoderKL and its discriminator, "
            f"this run trains a {type(models.tokenizer).__name__} "
            f"{'without one' if judge is None else f'and {own}'}: "
            "convert a VAE that diffusers supports alone (--to diffusers)"
        )
    parts["tokenizer"] = original.vae_part(models.tokenizer)
    parts["discriminator"] = original.discriminator_part(models.discriminator)
    return parts


def _known():
    """The backbones of checkpoints, and what conditions them, in words."""
    rows = [(SiT, (CLASSES,)), *((row.network, row.conditions) for row in FOREIGN.values())]
    of_classes = ", ".join(network.__name__ for network, known in rows if CLASSES in known)
    others = [
        f"{network.__name__} with {_in_words(condition)}"
        for network, known in rows
        for condition in known
        if condition != CLASSES
    ]
    return f"{of_classes} with {CLASSES}, {', '.join(others)}"


def _in_words(condition, conditioner=None):
    if not condition:
        return f"a {type(conditioner).__name__}"
    return condition if condition == CLASSES else f"text (embedding {condition!r})"


def new_provenance(config: ConfigDict, models: Models, parts: dict[str, Part]) -> Provenance:
    """The provenance for the export of a run that was not imported."""
    groups = {}
    for network, part in parts.items():
        options = config.optimizer[network]
        groups[OPTIMIZERS[network]] = parameter_groups(
            len(part.slots),
            lr=options.learning_rate,
            betas=(options.b1, options.b2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            undecayed=part.undecayed,
        )
    if kind := foreign_of(models.backbone):
        args = FOREIGN[kind].make_settings(config)
        return dataclasses.replace(blank_provenance(kind), args=args, groups=groups)
    blank = blank_provenance("repae" if "tokenizer" in parts else "ldm")
    return dataclasses.replace(blank, args=args_from_config(config), groups=groups)
