"""RAEs that diffusers' AutoencoderRAE lacks, as the class RepaeRAE of a pipeline's own code.

These are RAEv2, decoders with other positions than AutoencoderRAE computes, and encoders with
other MLPs. The tensors are named as AutoencoderRAE's, with the decoder's table of positions and
DINOv3's periods; the latents of its `encode` and `decode` are not normalized.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import rae, rae_config
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.pipeline_code import PREFIX
from repae_jax.models.tokenizers.rae import RAE

CLASS_NAME, CODE = "RepaeRAE", "rae"
_PERIODS = "encoder.rope_embed.periods"
_LEFT_OUT = (  # keys of AutoencoderRAE
    "image_size", "noise_tau", "reshape_to_2d", "use_encoder_loss", "scaling_factor",
    "latents_mean", "latents_std",
)  # fmt: skip
CONFIG_DEFAULTS = {
    **rae_config.CONFIG_DEFAULTS,
    "encoder_intermediate_size": None,
    "encoder_layers": (),
    "normalized_pixels": True,
    "statistics_shape": None,
}


def is_needed(model: RAE, statistics: Statistics | None) -> bool:
    """Whether AutoencoderRAE computes other images, or has no such network.

    Args:
      model: the RAE.
      statistics: of its latents, whose grid is that of the folder.
    """
    if model.table_grid or rae_config.lacks(model):
        return True
    grid = _grid(model, statistics, rae_config.assumed_config(model))
    return rae.BASE_GRID / grid != model.position_step


def dimensions(config: Mapping[str, Any], *, source: str = "config.json") -> dict[str, Any]:
    """The fields of `RAE` from the config.json of this class.

    Raises:
      UserError: see `rae_config.rae_dimensions`; or a key is set that only AutoencoderRAE has.
    """
    for key in _LEFT_OUT:
        if config[key] != CONFIG_DEFAULTS[key]:
            raise UserError(f"{source}: {key} is {config[key]!r}, a key that {CLASS_NAME} lacks")
    fields = rae_config.rae_dimensions(config, source=source)
    hidden = config["encoder_intermediate_size"]
    fields["encoder_hidden"] = None if hidden == 4 * fields["latent_channels"] else hidden
    fields |= {"encoder_layers": tuple(config["encoder_layers"])}
    fields |= {"normalized_pixels": config["normalized_pixels"]}
    rae_config.check(RAE(**fields), source)
    return fields


def config_of(model: RAE) -> dict[str, Any]:
    """The inverse of `dimensions`, without the size of the images.

    Raises:
      UserError: transformers has no such encoder.
    """
    width = model.latent_channels
    hidden = model.encoder_hidden or 4 * width
    if model.encoder == "dinov2" and hidden % width:
        raise UserError(
            f"the encoder's MLPs have the inner width {hidden}, but those of transformers' DINOv2 "
            f"have a multiple of its width, {width}: keep the run's work directory"
        )
    return {
        "_class_name": CLASS_NAME,
        "auto_map": {"AutoModel": f"{PREFIX}{CODE}.{CLASS_NAME}"},
        **rae_config.sizes_of(model),
        "encoder_intermediate_size": hidden,
        "encoder_layers": list(model.encoder_layers),
        "normalized_pixels": model.normalized_pixels,
    }


def export(variables: Mapping[str, Any], model: RAE) -> dict[str, np.ndarray]:
    """The tensors of a folder, without a computed table of positions."""
    periods = variables["constants"].get("periods")
    extra = {} if periods is None else {_PERIODS: periods}
    return rae.export_rae(variables, model) | extra


def with_statistics(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    model: RAE,
    statistics: Statistics | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A folder's tensors and config with these statistics and the decoder's table of positions.

    The grid of the statistics is that of the folder; without them it is that of `config`.

    Raises:
      UserError: the statistics are those of latents that are not square.
    """
    grid = _grid(model, statistics, config)
    _, mean, std = rae_config.stored_statistics(config, statistics)
    tensors = {**tensors, rae.MEAN: mean, rae.STD: std}
    if not model.table_grid:
        tensors[f"decoder.{rae.TABLE}"] = rae.table_of(model, grid)
    kept = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    sizes = {"encoder_input_size": grid * model.encoder_patch, "statistics_shape": list(mean.shape)}
    return tensors, kept | sizes


def check_same(model: RAE, fields: Mapping[str, Any], source: str) -> None:
    """Raise UserError if a folder's dimensions differ; its table shows whether positions do."""
    rae_config.check_same(model, {**fields, "position_step": model.position_step}, source)


def _grid(model, statistics, config):
    """The latents along a side; of `config` if neither a table nor statistics tell it."""
    shape = () if statistics is None else np.shape(statistics["var"])[:-1]
    rows, columns = shape or (0, 0)
    if rows != columns:
        raise UserError(
            f"the latent statistics have {rows} x {columns} positions, but a RAE in torch has "
            "square latents"
        )
    return model.table_grid or rows or config["encoder_input_size"] // model.encoder_patch
