"""A random VAE and a random teacher for the tiny configuration, as files."""

import pathlib

import diffusers_vae
import jax
import numpy as np
import parity
import tiny

from repae_jax.config.modules import build_encoder
from repae_jax.runs.build import build_models
from repae_jax.runs.weights import save_teacher


def write_weights(folder: pathlib.Path) -> None:
    """Write the folder `vae`, as diffusers does, and teacher.safetensors."""
    config = tiny.get_config()
    models = build_models(config)
    peer = parity.randomise(diffusers_vae.make_vae(models.tokenizer), seed=3)
    peer.save_pretrained(folder / "vae")
    write_teacher(folder)


def write_teacher(folder: pathlib.Path) -> None:
    """Write teacher.safetensors."""
    entry = tiny.get_config().teachers.small
    model = build_encoder(entry, 32)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    save_teacher(str(folder / "teacher.safetensors"), variables["params"], {})
