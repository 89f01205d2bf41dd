"""Text-to-image runs of seconds, and text encoders of random weights, for checkpoints of others."""

import pathlib

import jax
import numpy as np
import parity
import tiny
from weight_files import random

from repae_jax.config import backbone, condition, text_encoder
from repae_jax.config.modules import build_text_encoder
from repae_jax.data.tokens import FILE, grammar_tokenizer
from repae_jax.interop.files import write_safetensors
from repae_jax.interop.text_encoder import export_text_encoder
from repae_jax.models.text_encoders.base import initial_variables
from repae_jax.runs.build import build_models, state_template
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.workdir import claim


def text_config(family: str, embedding: str, width: int, recipe: str = "vanilla", **sizes):
    """A run of described images, whose text encoder has states of this width."""
    config = tiny.get_config(recipe)
    config.data.update(source="described", num_classes=1)
    config.text_encoder = text_encoder("grammar-lm", hidden_size=width, depth=1, mlp_hidden=16)
    config.condition = condition("text", embedding=embedding)
    config.backbone = backbone(family=family, patch_size=2, encoder_depth=1, **sizes)
    return config


def write_text_encoder(folder: pathlib.Path, config) -> pathlib.Path:
    """A folder with the configuration's text encoder and its tokenizer; its path."""
    folder.mkdir()
    encoder = build_text_encoder(config)
    init = parity.quick_jit(lambda: initial_variables(encoder, jax.random.key(0)))
    write_safetensors(folder / "model.safetensors", export_text_encoder(init(), encoder))
    grammar_tokenizer().save(str(folder / FILE))
    return folder


def write_run(workdir: pathlib.Path, config, step: int):
    """Write a work directory with random weights, without training; its state."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = random(state_template(config, build_models(config), sharding))
    count = np.asarray(step, np.int32)
    adam = jax.tree.map(lambda a: a if a.ndim else count, state.opt_state)
    state = state.replace(step=count, opt_state=adam)
    claim(workdir, config)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(step, state, {"global_next_index": step * config.batch_size})
    checkpoints.close()
    return state
