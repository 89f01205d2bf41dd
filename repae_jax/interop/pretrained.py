"""A VAE with its weights: `AutoencoderKL.from_pretrained`, and back to disk for others to open."""

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

from repae_jax.atomic import replacing
from repae_jax.errors import UserError
from repae_jax.interop import autoencoder_kl, files, hub, latent_statistics, qwen_image
from repae_jax.models.autoencoder_kl import AutoencoderKL, Posterior
from repae_jax.models.batch_norm import denormalize
from repae_jax.models.qwen_image_vae import AutoencoderKLQwenImage
from repae_jax.sampling.pixels import as_float

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True)
class PretrainedVAE:
    """A VAE's architecture, weights, and what its publisher says about its latents.

    Attributes:
      module: the architecture; `module.apply({"params": params}, ...)` is the pure function.
      params: its parameters.
      config: entries of diffusers' config.json beyond the dimensions, such as "scaling_factor".
      statistics: the latents' {"mean": (c,), "var": (c,)}, or None where nobody measured them.
    """

    module: nn.Module
    params: Mapping[str, Any]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, np.ndarray] | None = None

    @classmethod
    def from_pretrained(
        cls, name: str | pathlib.Path, *, dtype: Any = jnp.float32
    ) -> "PretrainedVAE":
        """Load a VAE, whatever of these `name` is:

        - a repository on the Hugging Face hub, "REPA-E/e2e-sdvae-hf", or a folder in one,
          "black-forest-labs/FLUX.1-dev/vae";
        - a folder that diffusers wrote, or a work directory that trained a VAE;
        - a file under LDM's names, such as the original's `e2e-vavae.pt`, with its
          `-latents-stats.pt` beside it.

        Args:
          name: as above.
          dtype: of the matrix products and convolutions; parameters are float32.

        Raises:
          UserError: nothing is there, it is damaged, or it is something else.
        """
        stored = read_vae(name, dtype=dtype, bare=True)
        params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), stored.params)
        return dataclasses.replace(stored, params=params)

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Write config.json and the weights to a new folder, as diffusers does; it opens there.

        Raises:
          UserError: the folder exists and is not empty, or cannot be written.
        """
        write_diffusers(folder, self)

    def encode(self, images: jax.Array) -> Posterior:
        """Images (B, H, W, 3), uint8 or float in [-1, 1] -> the posterior of their latents.

        `.sample(key)` draws latents (B, H / f, W / f, c), `.mean` is the most likely ones; both
        are as the VAE gives them, `normalize` brings them to unit variance.

        Raises:
          TypeError: images of another type.
          UserError: floats beyond the range, or another shape: H and W are multiples of the
            VAE's factor f.
        """
        return _encode(self.module, self.params, as_float(images))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents (B, h, w, c), not normalised -> images (B, h * f, w * f, 3), about [-1, 1].

        `repae_jax.sampling.pixels.to_uint8` makes pixels of them.

        Raises:
          TypeError, UserError: latents of another type or shape.
        """
        return _decode(self.module, self.params, jnp.asarray(latents))

    def normalize(self, latents: jax.Array) -> jax.Array:
        """(z - mean) / std per channel, with the statistics that came with the VAE.

        Raises:
          UserError: it came without.
        """
        mean, var = self._moments()
        return (latents - mean) / jnp.sqrt(var)

    def denormalize(self, latents: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        return denormalize(latents, *self._moments())

    def _moments(self):
        if self.statistics is None:
            raise UserError("this VAE came without latent statistics (mean and variance)")
        return self.statistics["mean"], self.statistics["var"]


def read_vae(
    name: str | pathlib.Path, *, dtype: Any = jnp.float32, bare: bool = False
) -> PretrainedVAE:
    """What `PretrainedVAE.from_pretrained` loads, as numpy arrays in the type of the file.

    On the hub only what begins with hf://, unless `bare`.

    Raises:
      UserError: nothing is there, it is damaged, or it is something else.
    """
    path = hub.locate(name, (CONFIG, WEIGHTS), bare=bare)
    if (path / "checkpoints").is_dir():
        from repae_jax.training.exchange import run_vae

        vae = run_vae(path)
        return dataclasses.replace(vae, module=vae.module.clone(dtype=dtype))
    return _read_folder(path, dtype) if path.is_dir() else _read_file(path, dtype)


def read_weights(
    name: str | pathlib.Path, module: nn.Module
) -> tuple[dict, Mapping[str, np.ndarray] | None]:
    """Parameters for `module`, and the latents' statistics if something beside them tells.

    Raises:
      UserError: nothing is there, it is damaged, or it holds another VAE.
    """
    path = hub.locate(name, (CONFIG, WEIGHTS))
    if path.is_dir():
        config, tensors, source = _folder_content(path)
        statistics = latent_statistics.from_config(config, source=str(path / CONFIG))
    else:
        tensors, statistics = _vae_in(files.read_stored(path), path)
        source = str(path)
    return _family(module).load(tensors, module, source=source), statistics


def write_diffusers(folder: str | pathlib.Path, vae: PretrainedVAE) -> None:
    """Write a VAE as diffusers does, in the type that its parameters have.

    Raises:
      UserError: the folder exists and is not empty, or cannot be written.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: choose a new folder, or empty it")
    family = _family(vae.module)
    tensors = family.export(jax.device_get(vae.params), vae.module)
    config = {**vae.config, **family.config_from_dimensions(vae.module)}
    config = latent_statistics.updated_config(config, vae.statistics)
    with replacing(folder) as temporary:
        temporary.mkdir()
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (temporary / CONFIG).write_text(text)
        files.write_safetensors(temporary / WEIGHTS, tensors, {"format": "pt"})


def write_ldm(path: str | pathlib.Path, vae: PretrainedVAE) -> None:
    """Write a VAE as the original's file X.pt (or .safetensors), with X-latents-stats.pt.

    Raises:
      UserError: it is a VAE that LDM's names do not know, or cannot be written.
    """
    path = pathlib.Path(path)
    if not isinstance(vae.module, AutoencoderKL):
        name = type(vae.module).__name__
        raise UserError(f"{path}: {name} has no names of LDM's; write a diffusers folder")
    tensors = autoencoder_kl.export_vae(jax.device_get(vae.params), vae.module, "ldm")
    if vae.statistics is not None:
        latent_statistics.write(latent_statistics.beside(path), vae.statistics)
    files.write_flat(path, tensors, {"groups": str(vae.module.groups)})


@dataclasses.dataclass(frozen=True)
class _Family:
    """How one architecture's weights and dimensions are written down by others."""

    module: type[nn.Module]
    load: Any
    export: Any
    dimensions_from_config: Any
    config_from_dimensions: Any


FAMILIES = {
    "AutoencoderKL": _Family(
        AutoencoderKL,
        autoencoder_kl.load_vae,
        autoencoder_kl.export_vae,
        autoencoder_kl.dimensions_from_config,
        autoencoder_kl.config_from_dimensions,
    ),
    "AutoencoderKLQwenImage": _Family(
        AutoencoderKLQwenImage,
        qwen_image.load_qwen,
        qwen_image.export_qwen,
        qwen_image.qwen_dimensions,
        qwen_image.qwen_config,
    ),
}


def _family(module):
    return next(family for family in FAMILIES.values() if isinstance(module, family.module))


def _read_folder(path, dtype):
    config, tensors, source = _folder_content(path)
    name = config.get("_class_name")
    if name not in FAMILIES:
        raise UserError(
            f"{path / CONFIG}: _class_name is {name!r}; known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    dimensions = family.dimensions_from_config(config, source=str(path / CONFIG))
    module = family.module(**dimensions, dtype=dtype)
    return PretrainedVAE(
        module=module,
        params=family.load(tensors, module, source=source),
        config={k: v for k, v in config.items() if k not in family.config_from_dimensions(module)},
        statistics=latent_statistics.from_config(config, source=str(path / CONFIG)),
    )


def _folder_content(path):
    """config.json, the tensors, and the path of their file."""
    config = read_config(path)
    candidates = [path / WEIGHTS, path / WEIGHTS.replace(".safetensors", ".bin")]
    candidates += sorted(path.glob("diffusion_pytorch_model.*.safetensors"))  # a variant's
    for file in candidates:
        if file.is_file():
            return config, files.read_stored(file), str(file)
    raise UserError(f"{path}: no weights beside {CONFIG}: {WEIGHTS} is missing")


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: {CONFIG} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is damaged: it holds a {type(config).__name__}, not an object")
    return config


def _read_file(path, dtype):
    content = files.read_stored(path)
    tensors, statistics = _vae_in(content, path)
    dimensions = autoencoder_kl.infer_dimensions(tensors, source=str(path))
    groups = _groups(content, path, dimensions)
    module = AutoencoderKL(**dimensions, groups=groups, dtype=dtype)
    params = autoencoder_kl.load_vae(tensors, module, source=str(path))
    return PretrainedVAE(module, params, {}, statistics)


def _groups(content, path, dimensions):
    """The groups of GroupNorm, which no tensor tells: the usual ones in all published files."""
    if path.suffix == ".safetensors":
        groups = int(files.read_metadata(path).get("groups", AutoencoderKL.groups))
    else:
        groups = _own_config(content).get("vae", {}).get("groups") or AutoencoderKL.groups
    narrow = [m * dimensions["channels"] for m in dimensions["multipliers"]]
    if any(width % groups for width in narrow):
        raise UserError(
            f"{path}: its widths {narrow} do not divide into the {groups} groups that published "
            "VAEs have, and the file does not tell its own: keep it as a diffusers folder"
        )
    return groups


def _own_config(content):
    """The configuration that our own checkpoints carry among the original's arguments, or {}."""
    args = content.get("args") or {}
    text = (args if isinstance(args, Mapping) else vars(args)).get("repae_jax", "{}")
    try:
        return json.loads(text)
    except (TypeError, json.JSONDecodeError):
        return {}


def _vae_in(content, path):
    """A VAE's tensors and statistics in its own file's content, or in a whole checkpoint's."""
    if isinstance(content.get("vae"), Mapping):
        ema = content.get("ema", {})
        mean, var = ema.get("bn.running_mean"), ema.get("bn.running_var")
        statistics = None if mean is None or var is None else {"mean": mean, "var": var}
        return content["vae"], statistics
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    beside = latent_statistics.beside(path)
    return content, latent_statistics.read(beside) if beside.is_file() else None


@functools.partial(jax.jit, static_argnums=0)
def _encode(module, params, images):
    return module.apply({"params": params}, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(module, params, latents):
    return module.apply({"params": params}, latents, method="decode")
