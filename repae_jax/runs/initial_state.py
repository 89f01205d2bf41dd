"""The state at step 0: fresh weights from the seed, replaced by weights from files."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from repae_jax.config.needs import needs_discriminator_encoder
from repae_jax.data import latents
from repae_jax.data.caption_states import check_states
from repae_jax.data.source import Source
from repae_jax.errors import UserError
from repae_jax.interop import latent_statistics
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.lpips import load_lpips, read_lpips
from repae_jax.interop.text_encoder import read_text_encoder
from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.networks import Models
from repae_jax.models.text_encoders.base import TextEncoder, null_states
from repae_jax.parallel.multihost import processes
from repae_jax.runs.build import fresh_state, init_compiler_options, latent_shape
from repae_jax.runs.captions import made_states, make_tokenize
from repae_jax.runs.fingerprint import tokenizer_sha256, weights_sha256
from repae_jax.runs.state import TrainState, tokenizer_variables
from repae_jax.runs.statistics import latent_moments
from repae_jax.runs.weights import (
    load_discriminator_encoder,
    load_teacher,
    read_discriminator,
    read_vae,
)

# The roles that `load_frozen` reads.
FROZEN = ("teachers", "lpips", "text_encoder", "discriminator")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights and statistics read from files, as numpy arrays.

    Attributes:
      params, batch_stats, frozen: by network, as in `TrainState`; `frozen["tokenizer"]` holds the
        tokenizer's collections that no step changes.
      statistics: latent statistics, {"mean": (c,), "var": (c,)}, or (h, w, c) each; None if the VAE
        came without them.
    """

    params: Mapping[str, Any]
    batch_stats: Mapping[str, Any]
    frozen: Mapping[str, Any]
    statistics: Statistics | None


def initial_state(
    config: ConfigDict,
    models: Models,
    source: Source,
    shardings: TrainState,
    *,
    progress: bool = False,
) -> TrainState:
    """Make the state at step 0 of a run that trains on `source`.

    Latent statistics that are missing from a pretrained VAE are measured, or taken from the cache
    of latents. All processes of a job make the same call.

    Args:
      config: the configuration.
      models: its networks.
      source: the training data.
      shardings: the sharding of each array of the state.
      progress: show a bar while measuring.

    Raises:
      UserError: a file is missing or damaged, or holds another model, or another VAE or other
        teachers made the cache.
    """
    loaded = load_weights(config, models)
    cached = config.data.source == latents.KIND
    if "tokenizer" in loaded.params or "tokenizer" in loaded.frozen:
        if cached:
            _check_cache(config, models, source, loaded)
        if loaded.statistics is None and models.latent_norm is not None:
            if cached:
                statistics = latents.statistics_of(source)
            else:
                statistics = _measured(config, models, source, loaded, progress)
            loaded = dataclasses.replace(loaded, statistics=statistics)
    return init_state(config, models, loaded, shardings)


def load_weights(config: ConfigDict, models: Models) -> Loaded:
    """Read every file of weights that the configuration names.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    params, batch_stats, variables, statistics = {}, {}, {}, None
    if config.tokenizer.weights:
        partial = "tokenizer" in config.train
        variables, statistics = read_vae(config, models.tokenizer, partial=partial)
        if "params" in variables:  # otherwise they are the seed's
            params["tokenizer"] = variables.pop("params")
    if config.discriminator.weights and models.discriminator is not None:
        loaded = read_discriminator(config.discriminator.weights, models.discriminator)
        params["discriminator"] = loaded["params"]
        batch_stats["discriminator"] = loaded["batch_stats"]
    frozen = load_frozen(config, models, FROZEN)
    if variables:
        frozen["tokenizer"] = variables
    return Loaded(params, batch_stats, frozen, statistics)


def load_frozen(config: ConfigDict, models: Models, roles: Iterable[str]) -> dict[str, Any]:
    """Read the variables of the frozen networks in `roles` from their files.

    Args:
      config: the configuration.
      models: its networks; a role that they lack is left out.
      roles: any of `FROZEN`; with the text encoder comes the null condition.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    frozen = {}
    if "teachers" in roles and models.teachers:
        frozen["teachers"] = load_teachers(config, models)
    if "lpips" in roles and models.lpips is not None:
        heads, vgg = config.lpips.weights, config.lpips.vgg_weights
        frozen["lpips"] = load_lpips(read_lpips(heads, vgg), models.lpips, source=heads)
    if "discriminator" in roles and needs_discriminator_encoder(config):
        frozen["discriminator"] = load_discriminator_encoder(config, models.discriminator)
    if "text_encoder" in roles and models.text_encoder is not None:
        frozen |= load_text_encoder(config, models.text_encoder)
    return frozen


def load_teachers(config: ConfigDict, models: Models) -> dict[str, Any]:
    """Read the variables of every teacher from its file; returns {teacher: variables}.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    return {
        name: load_teacher(config.teachers[name], teacher, config.data.resolution)
        for name, teacher in models.teachers.items()
    }


def load_text_encoder(config: ConfigDict, encoder: TextEncoder) -> dict[str, Any]:
    """Read the text encoder's variables, and compute its null condition on the processor.

    Returns:
      {"text_encoder": variables, "null_condition": see `null_states`}, as numpy arrays.

    Raises:
      UserError: the file is missing or damaged, or holds another network.
    """
    if not config.text_encoder.weights:
        raise UserError(
            "config.text_encoder.weights is empty: name the text encoder's folder or file "
            "(--config.text_encoder.weights=PATH)"
        )
    variables = read_text_encoder(config.text_encoder.weights, encoder)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        null = jax.jit(functools.partial(null_states, encoder))(variables)
    return {"text_encoder": variables, "null_condition": jax.tree.map(np.asarray, null)}


def init_state(
    config: ConfigDict,
    models: Models,
    loaded: Loaded | None = None,
    shardings: TrainState | None = None,
) -> TrainState:
    """Make the state at step 0 from loaded weights.

    Args:
      config: the configuration.
      models: its networks.
      loaded: from `load_weights`, which is called if this is None. Without statistics, LatentNorm
        starts at mean 0 and variance 1.
      shardings: the sharding of each array; None: on the default device.

    Raises:
      UserError: see `load_weights`.
    """
    loaded = load_weights(config, models) if loaded is None else loaded
    fresh = jax.jit(
        lambda data: fresh_state(config, models, jax.random.wrap_key_data(data)),
        compiler_options=init_compiler_options(),
        out_shardings=shardings,
    )
    state = fresh(np.asarray(jax.random.key_data(jax.random.key(config.seed))))
    norm = {}
    if loaded.statistics is not None and models.latent_norm is not None:
        shape = state.batch_stats["latent_norm"]["var"].shape
        source = config.tokenizer.statistics or config.tokenizer.weights or config.data.path
        norm = {"latent_norm": latent_statistics.fitted(loaded.statistics, shape, source=source)}
    averaged = {}
    if config.tokenizer_ema_decay and "tokenizer" in loaded.params:
        averaged = {"tokenizer": loaded.params["tokenizer"]}
    return state.replace(
        params=_placed(loaded.params, state.params),
        batch_stats=_placed({**loaded.batch_stats, **norm}, state.batch_stats),
        ema=_placed({**norm, **averaged}, state.ema),
        frozen=_placed(loaded.frozen, state.frozen),
    )


def initial_tokenizer(config: ConfigDict, models: Models) -> dict[str, Any]:
    """The tokenizer's variables at step 0, read from its file or initialized from the seed.

    Raises:
      UserError: the file is missing or damaged, or holds another model.
    """
    if config.tokenizer.weights:
        return read_vae(config, models.tokenizer)[0]
    key = jax.random.key(config.seed)

    def fresh(key):
        state = fresh_state(config, models, key)
        return tokenizer_variables(state.params, state.frozen)

    return jax.jit(fresh, compiler_options=init_compiler_options())(key)


def _placed(loaded, old):
    """Replace the networks of a state's field by `loaded`, with the old types and shardings."""

    def place(new, leaf):
        new = np.asarray(new, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: new[index])

    return {**old, **{k: jax.tree.map(place, tree, old[k]) for k, tree in loaded.items()}}


def _check_cache(config, models, source, loaded):
    """Raise UserError unless the configuration's VAE and teachers made the cache."""
    held = loaded.frozen.get("teachers", {})
    teachers = {name: weights_sha256(held[name]["params"]) for name in models.teachers}
    shape = latent_shape(config, models)
    tokenizer = tokenizer_sha256(tokenizer_variables(loaded.params, loaded.frozen))
    class_token = class_token_dim(models.backbone) > 0
    if source.keeps_states and models.text_encoder is not None:
        wanted = made_states(
            models.text_encoder, loaded.frozen["text_encoder"], make_tokenize(config)
        )
        check_states(source.name, source.manifest["made"], wanted)
    latents.check_for_training(source, tokenizer, teachers, shape, class_token=class_token)


def _measured(config, models, source, loaded, progress):
    """Measure the statistics of the first images' latents; all processes get the same bits."""
    params = {"tokenizer": {}, **loaded.params}  # the encoder alone may be loaded
    variables = tokenizer_variables(params, loaded.frozen)
    moments = latent_moments(
        models.tokenizer, variables, source, config.batch_size,
        posterior=config.objective.posterior, progress=progress,
    )  # fmt: skip
    return {name: processes().from_first(value) for name, value in moments.items()}
