"""The VAE families: their tensors' names and their dimensions in the files of other projects."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from repae_jax.errors import UserError
from repae_jax.interop import (
    autoencoder_kl,
    dc_ae,
    flux2,
    latent_statistics,
    pipeline_rae,
    qwen_image,
    rae,
    rae_config,
    wan,
)
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.models.tokenizers.rae import RAE


@dataclasses.dataclass(frozen=True)
class Family:
    """The format of one architecture's weights and dimensions in other projects' files.

    Attributes:
      module: the architecture's class here.
      sign: the beginning of a name that every file has (extract.py).
      beside: regular expressions of other networks' names under the same prefix.
      defaults: diffusers' values of absent keys of config.json.
      channels: the key of config.json for the latents' channels.
      load, export: tensors -> variables {"params": ..., and constants}, and back.
      dimensions_from_config, config_from_dimensions: config.json -> fields, and back.
      statistics_in_tensors: whether the tensors hold the latent statistics; otherwise config.json.
      add_statistics: (tensors, config, module, statistics) -> tensors and config with the
        statistics; None: FLUX.2's tensors or config.json's lists hold them.
      code: the file of torch_pipeline with the class, which diffusers lacks.
      refined: (fields, tensors, source) -> the fields, where tensors determine some of them too.
      check_same: (module, fields, source) raises UserError where the fields of a folder are not
        those of the module, in what the shapes of its tensors do not show.
      assumed: (module) -> entries of config.json that apply where a VAE's config has none.
    """

    module: type[nn.Module]
    sign: str
    beside: tuple[str, ...]
    defaults: Mapping[str, Any]
    channels: str
    load: Any
    export: Any
    dimensions_from_config: Any
    config_from_dimensions: Any
    statistics_in_tensors: bool = False
    add_statistics: Any = None
    code: str = ""
    refined: Any = lambda fields, tensors, source: fields
    check_same: Any = lambda module, fields, source: None
    assumed: Any = lambda module: {}

    def dimensions(
        self, tensors: Mapping[str, Any], config: Mapping[str, Any], *, source: str
    ) -> dict[str, Any]:
        """The fields of a folder's module; see `dimensions_from_config`."""
        fields = self.dimensions_from_config(config, source=source)
        return self.refined(fields, tensors, source)

    def statistics(
        self, tensors: Mapping[str, Any], config: Mapping[str, Any], *, source: str
    ) -> Statistics | None:
        """The latent statistics of a folder, or None; `config` has diffusers' defaults.

        Raises:
          UserError: the statistics are invalid.
        """
        channels = config[self.channels]
        if self.module is RAE:
            return rae_config.statistics_in(tensors, config, source=source)
        if self.statistics_in_tensors:
            epsilon = config["batch_norm_eps"]
            return flux2.statistics_in(tensors, 4 * channels, epsilon, source=source)
        return latent_statistics.from_config(config, channels, source=source)

    def with_statistics(
        self,
        tensors: Mapping[str, Any],
        config: Mapping[str, Any],
        module: nn.Module,
        statistics: Statistics | None,
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """A folder's tensors and config with these latent statistics."""
        if self.add_statistics is not None:
            return self.add_statistics(tensors, config, module, statistics)
        channels = module.latent_channels
        if self.statistics_in_tensors:
            return {**tensors, **flux2.statistics_tensors(statistics, channels)}, config
        return tensors, latent_statistics.updated_config(config, channels, statistics)


def _of_params(load, export):
    """`load` and `export` of variables, where a family has parameters alone."""

    def load_variables(tensors, module, *, source):
        return {"params": load(tensors, module, source=source)}

    def export_variables(variables, module):
        return export(variables["params"], module)

    return load_variables, export_variables


FAMILIES = {
    "AutoencoderKL": Family(
        AutoencoderKL,
        autoencoder_kl.SIGN,
        autoencoder_kl.BESIDE,
        autoencoder_kl.CONFIG_DEFAULTS,
        "latent_channels",
        *_of_params(autoencoder_kl.load_vae, autoencoder_kl.export_vae),
        autoencoder_kl.dimensions_from_config,
        autoencoder_kl.config_from_dimensions,
    ),
    "AutoencoderKLQwenImage": Family(
        AutoencoderKLQwenImage,
        qwen_image.SIGN,
        (),
        qwen_image.CONFIG_DEFAULTS,
        "z_dim",
        *_of_params(qwen_image.load_qwen, qwen_image.export_qwen),
        qwen_image.qwen_dimensions,
        qwen_image.qwen_config,
    ),
    wan.CLASS_NAME: Family(
        AutoencoderKLQwenImage,
        qwen_image.SIGN,
        (),
        wan.CONFIG_DEFAULTS,
        "z_dim",
        *_of_params(qwen_image.load_qwen, qwen_image.export_qwen),
        wan.wan_dimensions,
        wan.wan_config,
    ),
    flux2.CLASS_NAME: Family(
        AutoencoderKL,
        autoencoder_kl.SIGN,
        autoencoder_kl.BESIDE,
        flux2.CONFIG_DEFAULTS,
        "latent_channels",
        *_of_params(flux2.load_flux2, flux2.export_flux2),
        flux2.flux2_dimensions,
        flux2.flux2_config,
        statistics_in_tensors=True,
    ),
    "AutoencoderDC": Family(
        AutoencoderDC,
        dc_ae.SIGN,
        (),
        dc_ae.CONFIG_DEFAULTS,
        "latent_channels",
        dc_ae.load_dc_ae,
        dc_ae.export_dc_ae,
        dc_ae.dc_ae_dimensions,
        dc_ae.dc_ae_config,
    ),
    rae.CLASS_NAME: Family(
        RAE,
        rae.SIGN,
        (),
        rae_config.CONFIG_DEFAULTS,
        "encoder_hidden_size",
        rae.load_rae,
        rae.export_rae,
        rae_config.rae_dimensions,
        rae_config.rae_config,
        statistics_in_tensors=True,
        add_statistics=rae_config.with_statistics,
        refined=rae_config.refined,
        check_same=rae_config.check_same,
        assumed=rae_config.assumed_config,
    ),
}
FAMILIES[pipeline_rae.CLASS_NAME] = dataclasses.replace(
    FAMILIES[rae.CLASS_NAME],
    defaults=pipeline_rae.CONFIG_DEFAULTS,
    export=pipeline_rae.export,
    dimensions_from_config=pipeline_rae.dimensions,
    config_from_dimensions=pipeline_rae.config_of,
    add_statistics=pipeline_rae.with_statistics,
    code=pipeline_rae.CODE,
    check_same=pipeline_rae.check_same,
)


def family_of(module: nn.Module, class_name: str | None = None) -> Family:
    """The family that a VAE belongs to.

    Args:
      module: the VAE.
      class_name: the class of the files that it came from, where several have its network.

    Raises:
      UserError: the tokenizer has no format in other projects.
    """
    if class_name in FAMILIES:
        return FAMILIES[class_name]
    name = type(module).__name__
    if isinstance(module, RAE):
        name = pipeline_rae.CLASS_NAME if rae_config.lacks(module) else rae.CLASS_NAME
    if isinstance(module, AutoencoderKL) and module.patchify:
        name = flux2.CLASS_NAME
    if name not in FAMILIES:
        raise UserError(
            f"a {name} has no format of diffusers' or LDM's, which exist for "
            f"{', '.join(FAMILIES)}: keep it in its work directory, which config.tokenizer.weights "
            "accepts"
        )
    return FAMILIES[name]


def with_defaults(
    config: Mapping[str, Any], family: Family, channels: int | None = None
) -> dict[str, Any]:
    """`config` with diffusers' defaults for absent keys.

    Args:
      config: entries of config.json.
      family: the VAE's family.
      channels: the channels of its latents; None takes the number of `config`. Default statistics
        for another number of channels are left out.
    """
    full = {**family.defaults, **config}
    channels = channels or full[family.channels]
    for key in ("latents_mean", "latents_std"):
        default = family.defaults.get(key)
        if key not in config and default is not None and len(default) != channels:
            full[key] = None
    return full
