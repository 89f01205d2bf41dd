"""Reads and writes VAEs as diffusers folders and as files under LDM's names."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError, warn
from repae_jax.interop import (
    autoencoder_kl,
    checkpoint_parts,
    dc_ae,
    files,
    flux2,
    hub,
    latent_statistics,
    rae_files,
    tables,
    weight_files,
)
from repae_jax.interop.extract import Extract, extract
from repae_jax.interop.foreign_configs import check_config
from repae_jax.interop.pipeline_code import write_code
from repae_jax.interop.vae_families import FAMILIES, family_of, with_defaults
from repae_jax.interop.vae_groups import groups_in
from repae_jax.models.batch_norm import LATENT_EPSILON, denormalize, normalize
from repae_jax.models.inputs import check_latents
from repae_jax.models.tokenizers import base
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.dc_ae import AutoencoderDC
from repae_jax.models.tokenizers.distributions import LatentDistribution
from repae_jax.models.tokenizers.rae import RAE
from repae_jax.utils.arrays import as_array
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.images import as_float
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import read_json

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True)
class StoredVAE:
    """A VAE's architecture and weights, and the statistics of its latents.

    Attributes:
      module: the architecture; `module.apply(variables, ...)` is the pure function.
      params: its parameters.
      config: entries of diffusers' config.json beyond the dimensions, such as "scaling_factor".
      statistics: the latents' {"mean": (c,), "var": (c,)}, (h, w, c) each for a RAE, or None if its
        files have none.
      notes: notes on its file: tensors that were left out, and layers of zeros.
      constants: its collections beside the parameters.
    """

    module: base.Tokenizer
    params: Mapping[str, Any]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `module.apply`: {"params": ..., and the constants}."""
        return {"params": self.params, **self.constants}

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Write config.json and the weights to a new folder, which diffusers can open.

        Raises:
          UserError: the folder exists and is not empty, or cannot be written.
        """
        write_diffusers(folder, self)

    def encode(self, images: jax.Array) -> LatentDistribution:
        """Images (B, H, W, 3), uint8 or float in [-1, 1] -> the posterior of their latents.

        `.sample(key)` returns a sample (B, H / f, W / f, c), and `.mean` the most likely latents.
        Both are unnormalized; `normalize` gives them zero mean and unit variance.

        Raises:
          TypeError: images of another type.
          UserError: floats beyond the range, or a wrong shape; H and W must be multiples of the
            VAE's factor f.
        """
        return _encode(self.module, self.variables, as_float(images))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unnormalized latents (B, h, w, c) -> images (B, h * f, w * f, 3), about [-1, 1].

        `repae_jax.utils.images.to_uint8` converts the images to pixels.

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        return _decode(self.module, self.variables, self._checked(latents))

    def normalize(self, latents: jax.Array) -> jax.Array:
        """Latents (B, h, w, c) -> (z - mean) / sqrt(var + 1e-4), the latents of a backbone.

        Mean and variance are the statistics that came with the VAE.

        Raises:
          TypeError, UserError: latents of another type or shape, or a VAE without statistics.
        """
        latents = self._checked(latents)
        return normalize(latents, *self._moments(latents))

    def denormalize(self, latents: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        latents = self._checked(latents)
        return denormalize(latents, *self._moments(latents))

    def _checked(self, latents):
        latents = as_array(latents, "latents", "give floating point (B, h, w, c)")
        check_latents(latents, self.module.latent_channels)
        return latents

    def _moments(self, latents):
        if self.statistics is None:
            raise UserError("this VAE came without latent statistics (mean and variance)")
        shape = latents.shape[1:] if self.statistics["var"].ndim > 1 else latents.shape[-1:]
        fitting = latent_statistics.fitted(self.statistics, shape, source="this VAE")
        return fitting["mean"], fitting["var"]


def read_vae(
    name: str | pathlib.Path,
    *,
    dtype: Any = jnp.float32,
    bare: bool = False,
    variant: str | None = None,
) -> StoredVAE:
    """Read a diffusers folder or a file under LDM's names, as numpy arrays in the file's type.

    Args:
      name: a path, or "hf://" and a repository on the Hugging Face hub.
      dtype: the type of the module's products.
      bare: accept the name of a repository without "hf://".
      variant: the variant of the weights in a folder, such as "fp16".

    Raises:
      UserError: nothing is there, it is damaged, or it is no VAE.
    """
    path = hub.locate(name, (CONFIG,), weight_files.DIFFUSERS, variant=variant, bare=bare)
    if variant is not None and not path.is_dir():
        raise UserError(f"{path}: has no variant {variant!r}, as a folder of diffusers' may have")
    if path.is_dir() or of_a_folder(path):
        return _read_folder(path, dtype, variant)
    return _read_file(path, dtype)


def read_weights(
    name: str | pathlib.Path, module: nn.Module
) -> tuple[dict[str, Any], Mapping[str, np.ndarray] | None]:
    """Variables for `module`, and the latent statistics; None if no file beside them has any.

    Raises:
      UserError: nothing is there, it is damaged, or it holds another VAE.
    """
    path, described = hub.locate(name, (CONFIG,), weight_files.DIFFUSERS), ""
    if path.is_dir() or of_a_folder(path):
        file, config, family = _open_folder(path)
        found, source = _tensors(files.read_stored(file), family, file), str(file.parent / CONFIG)
        if not isinstance(module, family.module):
            raise UserError(
                f"{source}: _class_name is {config['_class_name']!r}, but the tokenizer of the "
                f"configuration is {family_of(module).module.__name__}: choose the preset that "
                "fits the folder (config.tokenizer.arch), or another folder"
            )
        fields = family.dimensions(found.tensors, config, source=source)
        family.check_same(module, fields, source)
        described = _other_size(module, fields, source)
        statistics = family.statistics(found.tensors, config, source=source)
    else:
        content, checkpoint = _open_file(path)
        if isinstance(module, RAE) and (found := rae_files.decoder_in(content, source=str(path))):
            variables = rae_files.read_decoder(found, module, path)
            return variables, rae_files.statistics_beside(path, module.latent_channels)
        found = _dc_ae_in(content, path) or _vae_in(content, checkpoint, path)
        statistics = _statistics_of(found, checkpoint, path, module)
        file = path
    try:
        variables = family_of(module).load(found.tensors, module, source=str(file))
    except UserError as error:
        raise UserError(f"{error}{described}") from error
    for note in notes_on(found, variables["params"]):
        warn(f"{name}: {note}")
    return variables, statistics


def _other_size(module, fields, source):
    """The end of an error: the first field in which a folder's VAE is another one; or ""."""
    ours = {name: getattr(module, name, value) for name, value in fields.items()}
    told = (name for name, value in fields.items() if value != ours[name])
    name = next(told, "")
    return name and (
        f"; {source} describes a VAE whose {name} is {fields[name]}, where the configuration has "
        f"{ours[name]}: choose the preset that fits (config.tokenizer.arch), or another folder"
    )


def of_a_folder(path: pathlib.Path) -> bool:
    """Whether a file holds the weights of a diffusers folder with a config.json."""
    return weight_files.is_of(path.name, weight_files.DIFFUSERS) and (path.parent / CONFIG).exists()


def notes_on(found: Extract, params: Mapping) -> tuple[str, ...]:
    """Notes on a VAE's file: tensors that were left out, and layers of zeros."""
    left = found.left_text()
    notes = [f"left out, as it is no part of the VAE: {left}"] if left else []
    return (*notes, *autoencoder_kl.blank_layers(params))


def write_diffusers(folder: str | pathlib.Path, vae: StoredVAE) -> None:
    """Write a VAE as a diffusers folder, in the type of its parameters.

    Raises:
      UserError: the folder exists and is not empty, or cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: choose a new folder, or empty it")
    family = family_of(vae.module, vae.config.get("_class_name"))
    channels = vae.module.latent_channels
    dimensions = family.config_from_dimensions(vae.module)
    tensors = family.export(jax.device_get(vae.variables), vae.module)
    tables.require_finite(tensors, folder)
    given = {**family.assumed(vae.module), **vae.config}
    config = {**with_defaults(given, family, channels), **dimensions}
    tensors, config = family.with_statistics(tensors, config, vae.module, vae.statistics)
    with replacing(folder) as temporary:
        temporary.mkdir()
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (temporary / CONFIG).write_text(text)
        if family.code:
            write_code(temporary, family.code)
        files.write_safetensors(temporary / WEIGHTS, tensors, {"format": "pt"})


def write_ldm(path: str | pathlib.Path, vae: StoredVAE) -> None:
    """Write a VAE as the original's file X.pt (or .safetensors), with X-latents-stats.pt.

    Raises:
      UserError: LDM has no names for this VAE, or the file cannot be written.
    """
    path = pathlib.Path(path)
    name = family_of(vae.module).module.__name__
    if not isinstance(vae.module, AutoencoderKL):
        raise UserError(f"{path}: {name} has no names of LDM's; write a diffusers folder")
    params, module = jax.device_get(vae.params), vae.module
    if module.patchify:  # the statistics are in its file
        tensors = flux2.export_flux2(params, module, "ldm")
        tensors |= flux2.statistics_tensors(vae.statistics, module.latent_channels)
    else:
        tensors = autoencoder_kl.export_vae(params, module, "ldm")
    tables.require_finite(tensors, path)
    if beside := ldm_statistics(path, vae):
        latent_statistics.write(beside, vae.statistics)
    files.write_flat(path, tensors, {"groups": str(vae.module.groups)})


def ldm_statistics(path: pathlib.Path, vae: StoredVAE) -> pathlib.Path | None:
    """The file of latent statistics that `write_ldm` writes beside `path`; None if it writes none.

    A patchified VAE's statistics are in its own file.
    """
    in_its_file = getattr(vae.module, "patchify", False)
    return None if vae.statistics is None or in_its_file else latent_statistics.beside(path)


def _read_folder(path, dtype, variant=None):
    file, config, family = _open_folder(path, variant)
    found, source = _tensors(files.read_stored(file), family, file), str(file.parent / CONFIG)
    module = family.module(**family.dimensions(found.tensors, config, source=source), dtype=dtype)
    variables = family.load(found.tensors, module, source=str(file))
    params = variables.pop("params")
    known = family.config_from_dimensions(module).keys() - {"_class_name"}
    return StoredVAE(
        module=module,
        params=params,
        constants=variables,
        config={k: v for k, v in config.items() if k not in known},
        statistics=family.statistics(found.tensors, config, source=source),
        notes=notes_on(found, params),
    )


def _open_folder(path, variant=None):
    """A diffusers folder's weight file, its config with defaults, and its family.

    Args:
      path: the folder, or the weight file in it.
      variant: the variant of the weights in a folder.
    """
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    name = config.get("_class_name")
    if name not in FAMILIES:
        raise UserError(
            f"{folder / CONFIG}: _class_name is {name!r}; known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    file = path
    if path.is_dir():
        file = weight_files.find_weights(folder, weight_files.DIFFUSERS, variant)
    if file is None:
        raise UserError(f"{path}: no weights beside {CONFIG}: {WEIGHTS} is missing")
    return file, with_defaults(config, family), family


def _tensors(content, family, path) -> Extract:
    found = extract(content, family.sign, source=str(path), ignore=family.beside)
    return found or Extract(content, (), "", ())


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
      UserError: the file is missing or damaged, or a key has an invalid value.
    """
    file = path / CONFIG
    if not file.exists():
        raise UserError(f"{path}: {CONFIG} is missing")
    return check_config(read_json(file), source=f"{file}: ")


def _read_file(path, dtype):
    content, checkpoint = _open_file(path)
    if found := rae_files.decoder_in(content, source=str(path)):
        module = rae_files.infer_model(found, path, dtype)
        variables = rae_files.read_decoder(found, module, path)
        statistics = rae_files.statistics_beside(path, module.latent_channels)
        return StoredVAE(module, variables.pop("params"), {}, statistics, (), variables)
    if found := _dc_ae_in(content, path):
        module = AutoencoderDC(
            **dc_ae.infer_dimensions(found.tensors, source=str(path)), dtype=dtype
        )
    else:
        found = _vae_in(content, checkpoint, path)
        names = flux2 if flux2.holds_statistics(found.tensors) else autoencoder_kl
        dimensions = names.infer_dimensions(found.tensors, source=str(path))
        groups = groups_in(content, path, dimensions)
        module = AutoencoderKL(**dimensions, groups=groups, dtype=dtype)
    variables = family_of(module).load(found.tensors, module, source=str(path))
    statistics = _statistics_of(found, checkpoint, path, module)
    params = variables.pop("params")
    return StoredVAE(module, params, {}, statistics, notes_on(found, params), variables)


def _open_file(path):
    """The content of a file, and its parts if it is a training checkpoint with a VAE; else None."""
    content = files.read_stored(path)
    checkpoint = checkpoint_parts.parts_of(content, source=str(path))
    return content, checkpoint if checkpoint and "vae" in checkpoint else None


def _vae_in(content, checkpoint, path) -> Extract:
    if checkpoint:
        return Extract(checkpoint["vae"], ("vae",), "", ())
    return _tensors(content, FAMILIES["AutoencoderKL"], path)


def _dc_ae_in(content, path) -> Extract | None:
    """A DC-AE under its authors' names; None if the file holds something else."""
    return extract(content, dc_ae.ORIGINAL_SIGN, source=str(path))


def _statistics_of(found, checkpoint, path, module):
    """The latent statistics of a training checkpoint, of a VAE's file or beside it; or None."""
    channels = module.latent_channels
    if getattr(module, "patchify", False):
        return flux2.statistics_in(found.tensors, channels, LATENT_EPSILON, source=str(path))
    if checkpoint:
        return checkpoint_parts.statistics_in(checkpoint, channels, source=str(path))
    return _statistics_beside(path, channels)


def _statistics_beside(path, channels):
    """The latent statistics of the file beside a VAE's; None if there is none."""
    beside = latent_statistics.beside(path)
    there = is_file_there(beside, "restore it, or remove it to do without")
    return latent_statistics.read(beside, channels) if there else None


_encode = functools.partial(jax.jit, static_argnums=0)(base.encode)
_decode = functools.partial(jax.jit, static_argnums=0)(base.decode)
