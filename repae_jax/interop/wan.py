"""Wan 2.1's VAE: the network and the tensors of Qwen-Image's, with other keys in config.json.

On a video of one frame the two are the same function; Wan caches later frames. Wan 2.2's VAE is
another network (`is_residual`).
"""

from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError
from repae_jax.interop import qwen_image
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage

CLASS_NAME = "AutoencoderKLWan"
_FIXED = {  # key of Wan's config.json -> its value for Wan 2.1
    "decoder_base_dim": None,
    "is_residual": False,
    "patch_size": None,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
_CHANNELS = ("in_channels", "out_channels")

# the values of keys that a config.json does not name: diffusers' defaults
CONFIG_DEFAULTS = {
    **{k: v for k, v in qwen_image.CONFIG_DEFAULTS.items() if k != "input_channels"},
    **_FIXED,
    **dict.fromkeys(_CHANNELS, 3),
}


def wan_dimensions(config: Mapping[str, Any], *, source: str = "config.json") -> dict[str, Any]:
    """The fields of `AutoencoderKLQwenImage` from Wan's config.json.

    Raises:
      UserError: another network, such as Wan 2.2's, or an unknown key.
    """
    full = {**CONFIG_DEFAULTS, **config}
    for key, value in _FIXED.items():
        same = full[key] == value or (key == "decoder_base_dim" and full[key] == full["base_dim"])
        if not same and not key.startswith("scale_factor"):  # which the dimensions decide
            raise UserError(
                f"{source}: {key} is {full[key]!r}, but Wan 2.1's VAE, which is known here, has "
                f"{value!r}"
            )
    if full["in_channels"] != full["out_channels"]:
        raise UserError(
            f"{source}: in_channels is {full['in_channels']} and out_channels "
            f"{full['out_channels']}: images go in and come out with the same channels"
        )
    own = {k: v for k, v in config.items() if k not in (*_FIXED, *_CHANNELS, "_class_name")}
    return qwen_image.qwen_dimensions(own | {"input_channels": full["in_channels"]}, source=source)


def wan_config(model: AutoencoderKLQwenImage) -> dict[str, Any]:
    """The inverse of `wan_dimensions`: config.json for diffusers, without statistics."""
    config = qwen_image.qwen_config(model)
    channels = dict.fromkeys(_CHANNELS, config.pop("input_channels"))
    spatial = model.factor
    temporal = 2 ** sum(model.temporal_downsample)
    scales = {"scale_factor_spatial": spatial, "scale_factor_temporal": temporal}
    return {**config, **_FIXED, **scales, **channels, "_class_name": CLASS_NAME}
