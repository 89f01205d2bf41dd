"""The contract of a backbone, as the training step and the samplers use it."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from repae_jax.models.conditioning.base import Arrays, Conditioner


class BackboneOutput(NamedTuple):
    """The result of one forward pass."""

    prediction: jax.Array  # (B, h, w, c) predicted velocity, float32
    tokens: jax.Array  # (B, N, D) hidden tokens after the aligned block
    projections: tuple[jax.Array, ...]  # one (B, N, D_k) per teacher
    extra: Mapping[str, jax.Array] = {}  # further outputs, such as "log_variance" (B, h, w, c)


class Backbone(Protocol):
    """A Flax module whose methods are applied by name.

    A row of `BACKBONES` builds it from latent_size, latent_channels, conditioner, teacher_dims,
    projector, dtype, remat, scan, and its own options.

    Training updates the collection "params". Other collections, such as "constants" with a
    position table, keep their initial values, and checkpoints carry them.
    """

    latent_size: int  # h = w
    latent_channels: int
    depth: int
    encoder_depth: int  # blocks up to the aligned one
    conditioner: Conditioner
    grid: int  # tokens a side

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """Full pass: noisy latents x (B, h, w, c) at time t (B,) in [0, 1], and the condition."""

    def project(self, x: jax.Array, t: jax.Array, condition: Arrays) -> tuple[jax.Array, ...]:
        """The projections alone; runs the blocks up to the aligned one."""

    def hidden(self, x: jax.Array, t: jax.Array, condition: Arrays) -> jax.Array:
        """The tokens after every block, averaged over positions: (depth, B, D), float32."""


def blank_inputs(backbone: Backbone) -> tuple[jax.Array, jax.Array, Arrays]:
    """Zeros (x, t, condition) with a batch of one, to initialize a backbone."""
    side = backbone.latent_size
    condition = {
        name: jnp.zeros((1, *leaf.shape), leaf.dtype)
        for name, leaf in backbone.conditioner.spec().items()
    }
    return jnp.zeros((1, side, side, backbone.latent_channels)), jnp.zeros((1,)), condition
