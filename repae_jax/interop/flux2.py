"""FLUX.2's VAE: an AutoencoderKL whose file holds the statistics of its patchified latents.

diffusers' class `AutoencoderKLFlux2` has them as a BatchNorm `bn` that neither `encode` nor
`decode` calls: pipelines normalize by (z - running_mean) / sqrt(running_var + batch_norm_eps),
which is LatentNorm. Black Forest Labs' own file has LDM's names, but the convolutions around the
latent within encoder and decoder.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import autoencoder_kl, latent_statistics, tables
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.models.batch_norm import LATENT_EPSILON
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL

CLASS_NAME = "AutoencoderKLFlux2"
_PATCH = [2, 2]
_MEAN, _VAR, _COUNTER = "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
_QUANT = {  # LDM's prefix -> that of Black Forest Labs' file
    "quant_conv.": "encoder.quant_conv.",
    "post_quant_conv.": "decoder.post_quant_conv.",
}
_WITHOUT = ("scaling_factor", "shift_factor", "force_upcast")  # keys of AutoencoderKL alone

# the values of keys that a config.json does not name: diffusers' defaults
CONFIG_DEFAULTS = {
    **{k: v for k, v in autoencoder_kl.CONFIG_DEFAULTS.items() if k not in _WITHOUT},
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "decoder_block_out_channels": None,
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 1024,
    "batch_norm_eps": LATENT_EPSILON,
    "batch_norm_momentum": 0.1,
    "patch_size": _PATCH,
}


def load_flux2(
    tensors: Mapping[str, np.ndarray], vae: AutoencoderKL, *, source: str = "checkpoint"
) -> dict:
    """A state dict as the parameters of `vae`; see `autoencoder_kl.load_vae`.

    The statistics are left out: see `statistics_in`.
    """
    return autoencoder_kl.load_vae(_without_statistics(tensors), vae, source=source)


def export_flux2(
    params: Mapping, vae: AutoencoderKL, naming: autoencoder_kl.Naming = "diffusers"
) -> dict[str, np.ndarray]:
    """The inverse of `load_flux2`, under diffusers' names or Black Forest Labs' ("ldm")."""
    tensors = autoencoder_kl.export_vae(params, vae, naming)
    if naming != "ldm":
        return tensors
    return {_own_name(name): array for name, array in tensors.items()}


def holds_statistics(tensors: Mapping[str, Any]) -> bool:
    """Whether the tensors are those of such a VAE."""
    return _MEAN in tensors


def statistics_in(
    tensors: Mapping[str, np.ndarray], channels: int, epsilon: float, *, source: str
) -> dict[str, np.ndarray]:
    """LatentNorm's statistics of the patchified latents.

    Args:
      tensors: the file's names -> arrays.
      channels: the channels of the patchified latents.
      epsilon: `batch_norm_eps`, which is added to the variance.
      source: the file's name in an error.

    Raises:
      UserError: a tensor is missing, or its values are invalid.
    """
    for name in (_MEAN, _VAR):
        if name not in tensors:
            raise UserError(f"{source}: tensor {name!r} is missing")
    mean, var = (np.asarray(tensors[name], np.float32) for name in (_MEAN, _VAR))
    if epsilon != LATENT_EPSILON:
        var = var + np.float32(epsilon - LATENT_EPSILON)
    return latent_statistics.as_statistics(mean, var, channels, source=source, keys=(_MEAN, _VAR))


def statistics_tensors(statistics: Statistics | None, channels: int) -> dict[str, np.ndarray]:
    """The inverse of `statistics_in` with LatentNorm's epsilon; zeros and ones for None."""
    if statistics is None:
        statistics = {"mean": np.zeros(channels), "var": np.ones(channels)}
    return {
        _MEAN: np.asarray(statistics["mean"], np.float32),
        _VAR: np.asarray(statistics["var"], np.float32),
        _COUNTER: np.zeros((), np.int64),
    }


def flux2_dimensions(config: Mapping[str, Any], *, source: str = "config.json") -> dict[str, Any]:
    """The fields of AutoencoderKL from diffusers' config.json.

    Raises:
      UserError: a variant that AutoencoderKL does not support.
    """
    full = {**CONFIG_DEFAULTS, **config}
    if list(full["patch_size"]) != _PATCH:
        raise UserError(
            f"{source}: patch_size is {full['patch_size']!r}, {CLASS_NAME} has {_PATCH}"
        )
    fields = autoencoder_kl.dimensions_from_config(full, source=source)
    widths = full["decoder_block_out_channels"] or full["block_out_channels"]
    decoder_channels = widths[0] if full["decoder_block_out_channels"] else None
    if list(widths) != [widths[0] * multiplier for multiplier in fields["multipliers"]]:
        raise UserError(
            f"{source}: decoder_block_out_channels is {list(widths)}: its levels have other "
            f"multiples of the first than those of block_out_channels, {fields['multipliers']}"
        )
    fields |= {"latent_channels": 4 * fields["latent_channels"], "patchify": True}
    return fields | {"decoder_channels": decoder_channels}


def flux2_config(vae: AutoencoderKL) -> dict[str, Any]:
    """The inverse of `flux2_dimensions`: config.json for diffusers."""
    config = autoencoder_kl.config_from_dimensions(vae)
    decoder = vae.decoder_channels
    widths = [decoder * multiplier for multiplier in vae.multipliers] if decoder else None
    return {
        **config,
        "_class_name": CLASS_NAME,
        "latent_channels": vae.inner_channels,
        "decoder_block_out_channels": widths,
        "batch_norm_eps": LATENT_EPSILON,
        "patch_size": _PATCH,
    }


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The fields of AutoencoderKL that follow from tensors; see `autoencoder_kl`."""
    own = _without_statistics(tensors)
    fields = autoencoder_kl.infer_dimensions(own, source=source)
    rules = autoencoder_kl.rules_of(
        autoencoder_kl.detect_naming(own) or "ldm", len(fields["multipliers"])
    )
    norm = tables.to_ours(rules, own, source=source).get("decoder/norm_out/scale")
    if norm is None:
        raise UserError(f"{source}: 'decoder.norm_out' is missing")
    width = norm.shape[0] // fields["multipliers"][0]
    fields |= {"latent_channels": 4 * fields["latent_channels"], "patchify": True}
    return fields | {"decoder_channels": width if width != fields["channels"] else None}


def _without_statistics(tensors):
    """The tensors of an AutoencoderKL, under LDM's names or diffusers'."""
    statistics = (_MEAN, _VAR, _COUNTER)
    return {_ldm_name(name): a for name, a in tensors.items() if name not in statistics}


def _ldm_name(name):
    for ours, theirs in _QUANT.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _own_name(name):
    for ours, theirs in _QUANT.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
