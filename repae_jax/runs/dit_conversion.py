"""DiTs between diffusers' folders, their authors' files and work directories."""

import json
import math
import pathlib

from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import original
from repae_jax.interop.detect_format import RUN, Detected
from repae_jax.interop.dit_folder import CLASS, StoredDiT, vae_beside
from repae_jax.interop.sit import infer_dimensions
from repae_jax.interop.vae_files import read_config
from repae_jax.models.backbones.dit import DiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.runs.build import build_models
from repae_jax.runs.dit_args import config_of_dit
from repae_jax.runs.foreign_backbones import SD_SCALE
from repae_jax.runs.open_run import open_on_host
from repae_jax.runs.state import without_heads


def dit_of(found: Detected, step: int | None = None) -> StoredDiT:
    """The DiT of a run or of its authors' file; the averaged one where there are two.

    Args:
      found: a run, a training checkpoint of DiT, or its bare weights.
      step: for a run, the step of the checkpoint; None: the newest.

    Raises:
      UserError: the run has another backbone or no checkpoint, or the number of heads is unknown.
    """
    source = str(found.path)
    if found.format == RUN:
        return _run_dit(found.path, step)
    tensors = found.content.get("ema", found.content)
    return StoredDiT(tensors, infer_dimensions(tensors, source=source)["num_heads"], source)


def config_of(dit: StoredDiT, path: pathlib.Path) -> ConfigDict:
    """The configuration of a run with a published DiT, on the VAE of its pipeline if it has one.

    Raises:
      UserError: the DiT is of no published size, or its pipeline scales latents by another factor
        than DiT's.
    """
    config = config_of_dit({"ema": dit.tensors}, source=dit.source, num_heads=dit.num_heads)
    if vae := vae_beside(path):
        factor = read_config(vae).get("scaling_factor", SD_SCALE)
        if factor is None or not math.isclose(factor, SD_SCALE, rel_tol=1e-5):
            raise UserError(
                f"{vae}: scaling_factor is {json.dumps(factor)}, but a DiT's latents are "
                f"multiplied by {SD_SCALE}: give the folder of the DiT alone, and a VAE with "
                "--config.tokenizer.weights"
            )
        config.tokenizer.weights = str(vae)
    return config


def check_same(dit: StoredDiT, config: ConfigDict) -> None:
    """Raise UserError unless the configuration's backbone is a DiT with as many heads."""
    if config.backbone.family != "dit":
        raise UserError(
            f"{dit.source}: is a DiT, but config.backbone.family is {config.backbone.family!r}: "
            "give a configuration with a DiT, such as imagenet256_dit_sdvae"
        )
    heads = build_models(config).backbone.num_heads
    if heads != dit.num_heads:
        raise UserError(
            f"{dit.source}: has {dit.num_heads} heads, but the configuration's backbone {heads}: "
            f"set --config.backbone.num_heads={dit.num_heads}"
        )


def _run_dit(workdir, step):
    run = open_on_host(workdir, step)
    backbone = run.models.backbone
    if type(backbone) is not DiT or not isinstance(backbone.conditioner, ClassLabel):
        held = "no backbone" if backbone is None else f"a {type(backbone).__name__}"
        raise UserError(
            f"{workdir}: diffusers has a class for a DiT with class labels ({CLASS}), but this run "
            f"has {held}: write its checkpoint (--to checkpoint), or its VAE (--to diffusers)"
        )
    ema = run.state.ema
    variables = {"params": without_heads(ema["params"]), "constants": ema["constants"]}
    tensors = original.export_part(variables, original.dit_part(backbone), {})
    return StoredDiT(tensors, backbone.num_heads, str(workdir))
