"""Networks, optimizers and the fresh state of a configuration."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from repae_jax.config.modules import (
    build_backbone,
    build_discriminator,
    build_encoder,
    build_text_encoder,
    build_tokenizer,
)
from repae_jax.config.needs import needs_foundation, needs_lpips, needs_teachers
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminators import split_variables
from repae_jax.models.encoders.base import initial_variables
from repae_jax.models.foundation import FoundationProjection
from repae_jax.models.lpips import LPIPS
from repae_jax.models.networks import Models
from repae_jax.models.text_encoders import base as text_encoders
from repae_jax.models.tokenizers.base import Tokenizer, is_identity, statistics_shape
from repae_jax.objectives.objective import Objective
from repae_jax.runs.optimizers import make_optimizer
from repae_jax.runs.state import TrainState, create_state


def build_models(config: ConfigDict) -> Models:
    """Build the networks that a configuration trains or needs, without their weights."""
    dtype = jnp.dtype(config.dtype)
    tokenizer = build_tokenizer(config, dtype)
    models = Models(tokenizer=tokenizer)
    if needs_teachers(config):
        teachers = {
            name: build_encoder(
                entry, config.data.resolution, dtype, scan=config.compute.scan_blocks
            )
            for name, entry in config.teachers.items()
        }
        models = dataclasses.replace(models, teachers=teachers)
    if needs_foundation(config):
        encoder = next(iter(models.teachers.values()))
        models = dataclasses.replace(models, foundation=FoundationProjection(encoder.dim))
    if "backbone" in config.train:
        models = dataclasses.replace(
            models,
            backbone=build_backbone(
                config, tokenizer, tuple(teacher.dim for teacher in models.teachers.values()), dtype
            ),
            latent_norm=build_latent_norm(config, tokenizer),
            text_encoder=build_text_encoder(config, dtype, scan=config.compute.scan_blocks),
        )
    if "discriminator" in config.train:
        models = dataclasses.replace(models, discriminator=build_discriminator(config, dtype))
    if needs_lpips(config):
        lpips = LPIPS(rescale_inputs=config.lpips.rescale_inputs, dtype=dtype)
        models = dataclasses.replace(models, lpips=lpips)
    return models


def build_latent_norm(config: ConfigDict, tokenizer: Tokenizer) -> LatentNorm:
    """Build the normalization of the tokenizer's latents; for pixels it is the identity."""
    momentum = config.latent_norm.momentum
    if is_identity(tokenizer):
        return LatentNorm(momentum=momentum, epsilon=0.0)
    side = config.data.resolution // tokenizer.factor
    shape = statistics_shape(tokenizer, (side, side, tokenizer.latent_channels))
    return LatentNorm(momentum=momentum, positions=shape[:-1])


def build_objective(config: ConfigDict) -> Objective:
    """Build the objective: the loss's coefficients and variants, from `config.objective`."""
    return Objective(**config.objective)


def build_optimizers(config: ConfigDict) -> dict[str, optax.GradientTransformation]:
    """Build one optimizer per trained network, in the order of `config.train`.

    That of the projection of VF loss, if there is one, has the tokenizer's settings.
    """
    return _make_optimizers(_optimizer_sections(config))


def _optimizer_sections(config):
    sections = {name: config.optimizer[name] for name in config.train}
    if needs_foundation(config):
        sections["foundation"] = config.optimizer.tokenizer
    return sections


def _make_optimizers(sections):
    return {name: make_optimizer(**section) for name, section in sections.items()}


class _StateSettings(NamedTuple):
    """What a state's arrays depend on beside the networks."""

    resolution: int
    optimizers: tuple[tuple[str, FrozenConfigDict], ...]  # (network, its section), in order
    lecam: bool
    average_tokenizer: bool

    @classmethod
    def of(cls, config):
        sections = _optimizer_sections(config).items()
        return cls(
            config.data.resolution,
            tuple((name, FrozenConfigDict(section)) for name, section in sections),
            bool(config.objective.lecam_weight),
            config.tokenizer_ema_decay > 0,
        )


def fresh_state(config: ConfigDict, models: Models, key: jax.Array) -> TrainState:
    """Make the state at step 0 with all networks freshly initialized, including frozen ones."""
    return _fresh_state(_StateSettings.of(config), models, key)


def _fresh_state(settings, models, key):
    keys = dict(
        zip(
            ("tokenizer", "backbone", "discriminator", "rest"),
            jax.random.split(key, 4),
            strict=True,
        )
    )
    side = settings.resolution
    image = jnp.zeros((1, side, side, 3))
    latent = jnp.zeros((1, *_latent_shape(side, models)))
    params, batch_stats, frozen = {}, {}, {}
    variables = models.tokenizer.init(keys["tokenizer"], image, latent)
    params["tokenizer"] = variables.pop("params", {})
    if variables:  # collections that no step changes
        frozen["tokenizer"] = variables
    if models.backbone is not None:
        variables = models.backbone.init(keys["backbone"], *blank_inputs(models.backbone))
        params["backbone"] = variables.pop("params")
        if variables:  # a table of positions, for example
            frozen["backbone"] = variables
        norm = models.latent_norm.init(keys["rest"], latent, train=False)
        batch_stats["latent_norm"] = norm["batch_stats"]
    if models.discriminator is not None:
        variables = models.discriminator.init(keys["discriminator"], image, train=True)
        name = "discriminator"
        params[name], batch_stats[name], constants = split_variables(variables)
        if constants:  # a frozen encoder, for example
            frozen[name] = constants
        if settings.lecam:
            batch_stats["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
    if models.foundation is not None:
        params["foundation"] = models.foundation.init(keys["rest"], latent)["params"]
    if models.teachers:
        frozen["teachers"] = {}
    for name, teacher in models.teachers.items():
        frozen["teachers"][name] = initial_variables(teacher, keys["rest"], side)
    if models.text_encoder is not None:
        variables = text_encoders.initial_variables(models.text_encoder, keys["rest"])
        frozen["text_encoder"] = variables
        frozen["null_condition"] = text_encoders.null_states(models.text_encoder, variables)
    if models.lpips is not None:
        frozen["lpips"] = models.lpips.init(keys["rest"], image, image)
    return create_state(
        params,
        batch_stats,
        frozen,
        _make_optimizers(dict(settings.optimizers)),
        average_tokenizer=settings.average_tokenizer,
    )


def state_shapes(config: ConfigDict, models: Models) -> TrainState:
    """Shapes and types of the state as `jax.ShapeDtypeStruct`s, without allocating arrays.

    Equal networks and settings are traced once: that takes seconds, and a command may need the
    shapes several times.
    """
    leaves, structure = _traced_shapes(_StateSettings.of(config), models)
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=32)
def _traced_shapes(settings, models):
    make = functools.partial(_fresh_state, settings, models)
    return jax.tree.flatten(jax.eval_shape(make, jax.random.key(0)))


def state_template(config: ConfigDict, models: Models, sharding) -> TrainState:
    """Shapes and types of the state, each leaf with `sharding`, for restoring a checkpoint."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state_shapes(config, models),
    )


def latent_shape(config: ConfigDict, models: Models) -> tuple[int, int, int]:
    """The shape (h, w, c) of an image's latent."""
    return _latent_shape(config.data.resolution, models)


def _latent_shape(resolution, models):
    side = resolution // models.tokenizer.factor
    return side, side, models.tokenizer.latent_channels


def init_compiler_options() -> dict[str, Any]:
    """XLA options that compile initialization fast on a CPU, where it runs once."""
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
