"""Weights at random for a tiny run with captions: its teacher, its text encoder, the tokenizer."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.modules import build_encoder, build_text_encoder
from repae_jax.data.tokens import grammar_tokenizer
from repae_jax.interop.files import write_safetensors
from repae_jax.interop.text_encoder import export_text_encoder
from repae_jax.models.text_encoders.base import initial_variables
from repae_jax.runs.weights import save_teacher


def write_text_weights(folder: pathlib.Path, config: ConfigDict) -> None:
    """Write `teacher.safetensors` and the folder `lm`."""
    side = config.data.resolution
    teacher, encoder = build_encoder(config.teachers.small, side), build_text_encoder(config)
    images, key = np.zeros((1, side, side, 3), np.float32), jax.random.key(0)
    variables = jax.jit(teacher.init)(key, images)
    save_teacher(str(folder / "teacher.safetensors"), variables["params"], {})
    (folder / "lm").mkdir()
    variables = jax.device_get(initial_variables(encoder, key))
    tensors = export_text_encoder(variables, encoder)
    write_safetensors(str(folder / "lm" / "model.safetensors"), tensors, {})
    grammar_tokenizer().save(str(folder / "lm" / "tokenizer.json"))
