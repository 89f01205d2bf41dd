"""Loading of a VAE with its weights: `repae_jax.AutoencoderKL.from_pretrained`."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError, warn
from repae_jax.interop import hub
from repae_jax.interop.vae_files import StoredVAE, read_vae
from repae_jax.runs.checkpoints import FOLDER
from repae_jax.runs.open_run import run_vae
from repae_jax.utils.schema import short_repr

_DTYPES = ("float32", "bfloat16", "float16")


class PretrainedVAE(StoredVAE):
    """A VAE's architecture and float32 weights, ready to encode and decode."""

    @classmethod
    def from_pretrained(
        cls, name: str | pathlib.Path, *, dtype: Any = jnp.float32, variant: str | None = None
    ) -> "PretrainedVAE":
        """Load a VAE from the hub, a folder or a file.

        `name` is one of:

        - a repository on the Hugging Face hub, "REPA-E/e2e-sdvae-hf", or a folder in one,
          "black-forest-labs/FLUX.1-dev/vae";
        - a folder that diffusers wrote, or a work directory that trained a VAE;
        - a file under LDM's names, such as the original's `e2e-vavae.pt`, with its
          `-latents-stats.pt` beside it; a warning lists other content, which is left out.

        Args:
          name: as above.
          dtype: type of the matrix products and convolutions: float32, bfloat16 or float16;
            parameters are float32.
          variant: variant of a folder's weights, such as "fp16" for
            diffusion_pytorch_model.fp16....

        Raises:
          UserError: `name` does not exist, is damaged or holds something else, or `dtype` is none
            of the three.
        """
        _check_dtype(dtype)
        stored = _read(pathlib.Path(name), name, dtype, variant)
        for note in stored.notes:
            warn(f"{name}: {note}")
        params = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), stored.params)
        constants = jax.tree.map(jnp.asarray, stored.constants)
        fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
        return cls(**fields | {"params": params, "constants": constants})

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, message: str = ""
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the address.

        Args:
          repository: owner/name; it is made if it does not exist.
          private: whether a new repository is private; None: as the account has it.
          message: the commit's message.

        Raises:
          UserError: the name is invalid, or the hub refuses the upload (`hf auth login`).
        """
        with tempfile.TemporaryDirectory(prefix="repae_jax_") as folder:
            path = pathlib.Path(folder) / "vae"
            self.save_pretrained(path)
            return hub.upload(path, repository, private=private, message=message)


def _check_dtype(dtype):
    try:
        found = jnp.dtype(dtype).name if dtype is not None else None
    except TypeError:
        found = dtype
    if found not in _DTYPES:
        raise UserError(f"dtype is {short_repr(found)}: give one of {', '.join(_DTYPES)}")


def _read(path, name, dtype, variant) -> StoredVAE:
    if not (path / FOLDER).is_dir():
        return read_vae(name, dtype=dtype, bare=True, variant=variant)
    if variant is not None:
        raise UserError(f"{path}: has no variant {variant!r}, as a folder of diffusers' may have")
    vae = run_vae(path)
    return dataclasses.replace(vae, module=vae.module.clone(dtype=dtype))
