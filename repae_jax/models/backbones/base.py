"""The contract of a backbone: what the step and the samplers ask of one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.conditioning.base import Arrays, Conditioner


class BackboneOutput(NamedTuple):
    """What one forward pass gives."""

    prediction: jax.Array  # (B, h, w, c) predicted velocity, float32
    tokens: jax.Array  # (B, N, D) hidden tokens behind the aligned block
    projections: tuple[jax.Array, ...]  # one (B, N, D_k) per teacher
    extra: Mapping[str, jax.Array] = {}  # further outputs, such as "log_variance" (B, h, w, c)


class Backbone(Protocol):
    """A flax module; its methods are applied by name.

    "params" train. Further collections, such as "constants" with a table of positions, stay as
    they are initialised, and checkpoints carry them.
    """

    latent_size: int  # h = w
    latent_channels: int
    depth: int
    encoder_depth: int  # blocks up to the aligned one
    conditioner: Conditioner
    grid: int  # tokens a side

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """Full pass: x (B, h, w, c) at time t (B,) in [0, 1], with the condition's arrays."""

    def project(self, x: jax.Array, t: jax.Array, condition: Arrays) -> tuple[jax.Array, ...]:
        """The projections alone: runs no further than the aligned block."""

    def hidden(self, x: jax.Array, t: jax.Array, condition: Arrays) -> jax.Array:
        """The tokens after every block, averaged over positions: (depth, B, D), float32."""


def blank_inputs(backbone: Backbone) -> tuple[jax.Array, jax.Array, Arrays]:
    """Zeros that a backbone takes, of a batch of one; to initialise it."""
    side = backbone.latent_size
    condition = {
        name: jnp.zeros((1, *leaf.shape), leaf.dtype)
        for name, leaf in backbone.conditioner.spec().items()
    }
    return jnp.zeros((1, side, side, backbone.latent_channels)), jnp.zeros((1,)), condition


class Family(NamedTuple):
    """A row of `BACKBONES`: what `config.backbone` may say of it.

    Attributes:
      module: the flax module. It takes latent_size, latent_channels, conditioner, teacher_dims,
        projector, dtype, remat and scan, and its options.
      options: its keys of `config.backbone` with their defaults; a type in place of a default
        is for a key that a preset or the configuration sets.
      presets: `config.backbone.arch` -> options.
      check: (module) raises UserError for sizes that do not go together.
      describe: (module) its sizes in words, for `inspect`.
    """

    module: type[nn.Module]
    options: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]]
    check: Callable[[Backbone], None] = lambda backbone: None
    describe: Callable[[Backbone], str] = repr
