"""The compiled train step on a mesh, with the shapes and shardings of its inputs and outputs."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.networks import Models, with_stripes
from repae_jax.models.stripes import stripes_for
from repae_jax.objectives.times import Times
from repae_jax.parallel.flops import count_flops
from repae_jax.parallel.mesh import batch_sharding, place_key, replicated
from repae_jax.parallel.sharding import make_gather, state_shardings
from repae_jax.runs.build import build_objective, build_optimizers, latent_shape, state_shapes
from repae_jax.runs.state import TrainState
from repae_jax.training.batch_shapes import Cache, batch_shapes, find_cache
from repae_jax.training.noise import sample_draws
from repae_jax.training.step import make_train_step


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable Python's cyclic garbage collector while a program is traced, compiled or loaded.

    A trace consists of many small objects that are all in use, so collecting finds nothing.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclasses.dataclass(frozen=True)
class Program:
    """A configuration's train step for the devices of a mesh.

    Attributes:
      config: the configuration.
      models: its networks.
      mesh: the devices.
      kept: the assumed content of a cache of latents that does not exist yet, see `find_cache`.
    """

    config: ConfigDict
    models: Models
    mesh: Mesh
    kept: tuple[str, ...] = ("tokens",)

    @functools.cached_property
    @gc_disabled()
    def template(self) -> TrainState:
        """The state's shapes, types and shardings, without allocating arrays."""
        shapes = state_shapes(self.config, self.models)
        shardings = state_shardings(shapes, self.mesh, self.config.mesh)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )

    @functools.cached_property
    def shardings(self) -> TrainState:
        """The sharding of every array of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.template)

    @functools.cached_property
    def cache(self) -> Cache | None:
        """The cache of latents that the run trains on; None if it trains on images."""
        return find_cache(self.config, self.models, self.kept)

    @property
    def images_at_once(self) -> int:
        """The images that a device has at a time: those of one micro-batch."""
        return self.config.batch_size // self.config.compute.micro_batches // self.mesh.size

    @property
    def stripes(self) -> int:
        """The most stripes per image, see models/stripes.py; 1 for whole images."""
        platform = self.mesh.devices.flat[0].platform
        return self.config.compute.stripes or stripes_for(platform, self.images_at_once)

    def arguments(self) -> tuple[Any, ...]:
        """The shapes of the arguments of `step`, for ahead-of-time compilation."""
        sharded = batch_sharding(self.mesh)
        teachers = self.template.frozen.get("teachers", {})
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded),
            batch_shapes(self.config, self.models, self.cache, teachers),
        )
        requests = jax.ShapeDtypeStruct((self.mesh.size,), jnp.int32, sharding=sharded)
        return self.template, batch, self.key_shape(), requests

    @gc_disabled()
    def flops(self) -> float:
        """Operations of `step` per image; see `parallel.flops.count_flops`."""
        return count_flops(self.step, *self.arguments()) / self.config.batch_size

    def key_shape(self) -> jax.ShapeDtypeStruct:
        """The shape of `key()`, for ahead-of-time compilation."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(self.mesh))

    def key(self) -> jax.Array:
        """The run's random key, on all devices."""
        return place_key(self.mesh, self.config.seed)

    def requests(self, stop: bool) -> jax.Array:
        """This process's request to all processes in the next step, (devices,) int32: 1 to stop."""
        local = np.full(len(self.mesh.local_devices), int(stop), np.int32)
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh), local)

    @functools.cached_property
    def step(self):
        """The jitted `step(state, batch, key, requests) -> (state, metrics)`; donates the state.

        The random draws of step n depend on (key, n) alone, so a resumed run repeats and skips
        none. The metric "stop" is 1 if any process requested a stop; the step distributes it, so
        all processes receive it at the same step.
        """
        config = self.config
        train_step = make_train_step(
            with_stripes(self.models, self.stripes),
            build_objective(config),
            build_optimizers(config),
            ema_decay=config.ema_decay,
            tokenizer_ema_decay=config.tokenizer_ema_decay,
            micro_batches=config.compute.micro_batches,
            gather=make_gather(self.mesh, self.shardings, config.dtype),
        )
        shape = latent_shape(config, self.models)
        backbone, trains_tokenizer = self.models.backbone, "tokenizer" in config.train

        def step(state, batch, key, requests):
            draws = sample_draws(
                jax.random.fold_in(key, state.step),
                config.batch_size,
                shape,
                interpolant=config.objective.interpolant,
                times=Times(**config.time),
                condition_drop=config.condition.drop,
                class_token_dim=class_token_dim(backbone),
                prior=bool(config.objective.prior_weight),
                augment=config.objective.augmentation != "none",
                latent_noise=config.objective.latent_noise if trains_tokenizer else 0.0,
            )
            draws = jax.lax.with_sharding_constraint(draws, batch_sharding(self.mesh))
            state, metrics = train_step(state, batch, draws)
            return state, metrics | {"stop": requests.max()}

        return jax.jit(
            step, donate_argnums=0, out_shardings=(self.shardings, replicated(self.mesh))
        )
