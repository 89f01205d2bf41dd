"""From a configuration to networks, optimizers, and a state with its weights loaded."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.config.defaults import tokenizer_dimensions
from repae_jax.config.modules import build_backbone, build_encoder
from repae_jax.config.needs import needs_lpips
from repae_jax.models.backbones.base import blank_inputs
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.base import initial_variables
from repae_jax.models.lpips import LPIPS
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.vae import VAE, VAE_FAMILIES
from repae_jax.objectives.objective import Objective
from repae_jax.runs.optimizers import adamw
from repae_jax.runs.state import TrainState, create_state

# a VAE's parameters -> its latents' {"mean": (c,), "var": (c,)}
Measure = Callable[[Any], Mapping[str, Any]]


def build_models(config: ConfigDict) -> Models:
    """The networks that this configuration trains or needs, without their weights."""
    dtype = jnp.dtype(config.dtype)
    tokenizer = build_tokenizer(config, dtype)
    models = Models(tokenizer=tokenizer)
    if "backbone" in config.train:
        teachers = {
            name: build_encoder(
                entry, config.data.resolution, dtype, scan=config.compute.scan_blocks
            )
            for name, entry in config.teachers.items()
        }
        models = dataclasses.replace(
            models,
            backbone=build_backbone(
                config, tokenizer, tuple(teacher.dim for teacher in teachers.values()), dtype
            ),
            latent_norm=LatentNorm(momentum=config.latent_norm.momentum),
            teachers=teachers,
        )
    if "discriminator" in config.train:
        dims = config.discriminator
        discriminator = PatchDiscriminator(
            filters=dims.filters,
            num_layers=dims.layers,
            dtype=dtype,
        )
        models = dataclasses.replace(models, discriminator=discriminator)
    if needs_lpips(config):
        lpips = LPIPS(rescale_inputs=config.lpips.rescale_inputs, dtype=dtype)
        models = dataclasses.replace(models, lpips=lpips)
    return models


def build_tokenizer(config: ConfigDict, dtype: Any = jnp.float32) -> VAE:
    """The VAE of `config.tokenizer`."""
    family, dimensions = tokenizer_dimensions(config)
    return VAE_FAMILIES[family](**dimensions, dtype=dtype, remat=config.compute.tokenizer_remat)


def build_objective(config: ConfigDict) -> Objective:
    """The loss's coefficients and variants."""
    return Objective(**config.objective)


def build_optimizers(config: ConfigDict) -> dict[str, optax.GradientTransformation]:
    """One optimizer per trained network, in the order of `config.train`."""
    return {name: adamw(**config.optimizer[name]) for name in config.train}


def init_state(
    config: ConfigDict,
    models: Models,
    measure: Measure | None = None,
    shardings: TrainState | None = None,
    check: Callable[[Any, Any], None] = lambda vae, frozen: None,
) -> TrainState:
    """The state at step 0: fresh weights from the seed, then those that the files bring.

    Args:
      config: the configuration.
      models: its networks.
      measure: a VAE's parameters -> its latents' statistics, asked where a pretrained VAE comes
        without them; without it LatentNorm then starts at mean 0 and variance 1.
      shardings: where each array of the state is to be; on one device by default.
      check: raises what is wrong with a pretrained VAE's parameters and the frozen networks'.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    loaded = _from_files(config, models, measure, check)
    fresh = jax.jit(
        lambda data: fresh_state(config, models, jax.random.wrap_key_data(data)),
        compiler_options=_init_compiler_options(),
        out_shardings=shardings,
    )
    state = fresh(np.asarray(jax.random.key_data(jax.random.key(config.seed))))
    fields = {}
    for field, networks in loaded.items():
        old = getattr(state, field)
        new = {name: jax.tree.map(_placed, tree, old[name]) for name, tree in networks.items()}
        fields[field] = {**old, **new}
    return state.replace(**fields)


def initial_tokenizer(config: ConfigDict, models: Models):
    """The tokenizer's parameters before the first step.

    Raises:
      UserError: its file is missing or damaged, or holds another model.
    """
    if config.tokenizer.weights:
        return _pretrained_tokenizer(config, models, None)[0]
    key = jax.random.key(config.seed)
    fresh = jax.jit(
        lambda key: fresh_state(config, models, key).params["tokenizer"],
        compiler_options=_init_compiler_options(),
    )
    return fresh(key)


def fresh_state(config: ConfigDict, models: Models, key: jax.Array) -> TrainState:
    """The state at step 0 with every network freshly initialised, frozen ones included."""
    keys = dict(
        zip(
            ("tokenizer", "backbone", "discriminator", "rest"),
            jax.random.split(key, 4),
            strict=True,
        )
    )
    side = config.data.resolution
    image = jnp.zeros((1, side, side, 3))
    latent = jnp.zeros((1, *latent_shape(config, models)))
    params, batch_stats, frozen = {}, {}, {}
    params["tokenizer"] = models.tokenizer.init(keys["tokenizer"], image, latent)["params"]
    if models.backbone is not None:
        variables = models.backbone.init(keys["backbone"], *blank_inputs(models.backbone))
        params["backbone"] = variables.pop("params")
        if variables:  # collections that no step changes, such as a table of positions
            frozen["backbone"] = variables
        norm = models.latent_norm.init(keys["rest"], latent, train=False)
        batch_stats["latent_norm"] = norm["batch_stats"]
    if models.discriminator is not None:
        variables = models.discriminator.init(keys["discriminator"], image, train=True)
        params["discriminator"] = variables["params"]
        batch_stats["discriminator"] = variables["batch_stats"]
        if config.objective.lecam_weight:
            batch_stats["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
    if models.teachers:
        frozen["teachers"] = {}
    for name, teacher in models.teachers.items():
        frozen["teachers"][name] = initial_variables(teacher, keys["rest"], side)
    if models.lpips is not None:
        frozen["lpips"] = models.lpips.init(keys["rest"], image, image)
    return create_state(params, batch_stats, frozen, build_optimizers(config))


def state_shapes(config: ConfigDict, models: Models) -> TrainState:
    """Shapes and types of the state; allocates nothing."""
    make = functools.partial(fresh_state, config, models)
    return jax.eval_shape(make, jax.random.key(0))


def state_template(config: ConfigDict, models: Models, sharding) -> TrainState:
    """Shapes and types of the state, all of it at `sharding`, for restoring a checkpoint."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state_shapes(config, models),
    )


def latent_shape(config: ConfigDict, models: Models) -> tuple[int, int, int]:
    """(h, w, c) of one image's latent."""
    side = config.data.resolution // models.tokenizer.factor
    return side, side, models.tokenizer.latent_channels


def _init_compiler_options():
    """Initialisation runs once, and on a CPU compiling it well takes longer than running it."""
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def load_frozen(config: ConfigDict, models: Models, roles: Iterable[str]) -> dict[str, Any]:
    """The variables of those "teachers" and "lpips" in `roles` that the run has, from their files.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    from repae_jax.interop.lpips import load_lpips, read_lpips

    frozen = {}
    if "teachers" in roles and models.teachers:
        frozen["teachers"] = load_teachers(config, models)
    if "lpips" in roles and models.lpips is not None:
        heads, vgg = config.lpips.weights, config.lpips.vgg_weights
        frozen["lpips"] = load_lpips(read_lpips(heads, vgg), models.lpips, source=heads)
    return frozen


def load_teachers(config: ConfigDict, models: Models) -> dict[str, Any]:
    """The variables of every teacher by name, from their files.

    Raises:
      UserError: a file is missing or damaged, or holds another model.
    """
    from repae_jax.runs.weights import load_teacher

    return {
        name: load_teacher(config.teachers[name], teacher, config.data.resolution)
        for name, teacher in models.teachers.items()
    }


def _pretrained_tokenizer(config, models, measure):
    from repae_jax.runs.weights import read_vae

    params, statistics = read_vae(config, models.tokenizer)
    if statistics is None and models.latent_norm is not None and measure is not None:
        statistics = measure(params)
    return params, statistics


def _from_files(config, models, measure, check):
    """By field of the state and network, the arrays that files bring; read before any is made."""
    from repae_jax.interop.discriminator import load_discriminator
    from repae_jax.interop.files import read_tensors

    params, batch_stats, ema = {}, {}, {}
    if config.tokenizer.weights:
        params["tokenizer"], statistics = _pretrained_tokenizer(config, models, measure)
        if statistics is not None and models.latent_norm is not None:
            batch_stats["latent_norm"] = ema["latent_norm"] = dict(statistics)
    if config.discriminator.weights and models.discriminator is not None:
        path = config.discriminator.weights
        loaded = load_discriminator(read_tensors(path), models.discriminator, source=path)
        params["discriminator"] = loaded["params"]
        batch_stats["discriminator"] = loaded["batch_stats"]
    frozen = load_frozen(config, models, ("teachers", "lpips"))
    if "tokenizer" in params:
        check(params["tokenizer"], frozen)
    return {"params": params, "batch_stats": batch_stats, "ema": ema, "frozen": frozen}


def _placed(new, old):
    """`new` with the type of `old`, and where that is."""
    new = np.asarray(new, old.dtype)
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])
