"""The contract of a backbone, as the training step and the samplers use it."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from repae_jax.models.conditioning.base import Arrays, Conditioner
from repae_jax.models.projectors import Projector


class BackboneOutput(NamedTuple):
    """The result of one forward pass."""

    prediction: jax.Array  # (B, h, w, c) predicted velocity or noise, float32
    tokens: jax.Array  # (B, N, D) hidden tokens after the aligned block, of any float type
    projections: tuple[jax.Array, ...]  # one (B, N, D_k) per teacher
    # further outputs, such as "variance" (B, h, w, c), and "class_token" (B, class_token_dim)
    extra: Mapping[str, jax.Array] = {}


class Backbone(Protocol):
    """A Flax module whose methods are applied by name.

    A row of `BACKBONES` builds it from the fields below and its own options. A caller applies a
    method by its name: `backbone.apply(variables, *inputs, method="project")`.

    Training updates the collection "params", of float32 arrays. Other collections, such as
    "constants" with a position table, keep their initial values, and checkpoints carry them.

    A backbone that predicts the data inside, and returns their velocity by `velocity_from_data`,
    has the field `least_time`; its objective needs the same.

    A backbone that denoises a class token beside the latents (REG, arXiv 2507.01467) has the field
    `class_token_dim`, its width. Its methods take the noisy class token (B, class_token_dim) as a
    fourth argument, `extra["class_token"]` is the token's velocity, and the class token follows the
    patches among `tokens` and in every projection.

    The parameters have the same names and shapes for every `remat` and `scan`, because both may
    change when a run resumes.

    Attributes:
      latent_size: h = w.
      latent_channels: c.
      conditioner: the kind of the condition. The backbone makes its module in `setup` by
        `setattr(self, conditioner.name, conditioner.module(width, dtype))`, so that its parameters
        have that name, which exports know.
      teacher_dims: D_k, the width of each teacher's tokens.
      projector: makes a projection head for each of them, `projector.module(dim, grid, dtype)`.
      dtype: the type of the matrix products.
      remat: a policy of `remat.POLICIES`; `rematerialize(Block, remat)` is the block's class.
      scan: run equal blocks as one loop, by `scan_blocks`; while `self.is_initializing()` they run
        one by one. A backbone may ignore it.
      depth: blocks.
      encoder_depth: blocks up to the aligned one.
      grid: tokens along a side.
      predicts: "velocity", or "noise" for the path "ddpm" of `objectives.paths.PATHS`; a class
        attribute.
    """

    latent_size: int
    latent_channels: int
    conditioner: Conditioner
    teacher_dims: tuple[int, ...]
    projector: Projector
    dtype: jnp.dtype
    remat: str
    scan: bool
    depth: int
    encoder_depth: int
    grid: int
    predicts: ClassVar[str]

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """Full pass: noisy latents x (B, h, w, c) at time t (B,) in [0, 1], and the condition."""

    def project(self, x: jax.Array, t: jax.Array, condition: Arrays) -> tuple[jax.Array, ...]:
        """The projections alone; runs the blocks up to the aligned one."""

    def hidden(self, x: jax.Array, t: jax.Array, condition: Arrays) -> jax.Array:
        """The tokens after every block, averaged over positions: (depth, B, D), float32."""


def velocity_from_data(
    x: jax.Array, noisy: jax.Array, t: jax.Array, least_time: float
) -> jax.Array:
    """The velocity (x_t - x) / max(t, least_time) on the linear path, of data x or its prediction.

    Args:
      x, noisy: (B, h, w, c).
      t: times, (B, 1, 1, 1).
      least_time: above 0.
    """
    return (noisy - x) / jnp.maximum(t, least_time)


def of_predicted_data(
    output: BackboneOutput, noisy: jax.Array, t: jax.Array, least_time: float
) -> BackboneOutput:
    """The output with the velocity of the data that it predicts; t is (B,)."""
    velocity = velocity_from_data(output.prediction, noisy, t[:, None, None, None], least_time)
    return output._replace(prediction=velocity.astype(jnp.float32))


def headless_shapes(backbone: Backbone) -> dict:
    """Shapes and types of a backbone's variables without projection heads; allocates nothing."""
    bare = backbone.clone(teacher_dims=())
    return jax.eval_shape(bare.init, jax.random.key(0), *blank_inputs(bare))


def class_token_dim(backbone: Backbone | None) -> int:
    """The width of the class token that a backbone denoises; 0 for none."""
    return getattr(backbone, "class_token_dim", 0)


def blank_inputs(backbone: Backbone) -> tuple[Any, ...]:
    """Zeros (x, t, condition) with a batch of one, to initialize a backbone.

    A fourth array is the class token of a backbone that denoises one.
    """
    side, dim = backbone.latent_size, class_token_dim(backbone)
    condition = {
        name: jnp.zeros((1, *leaf.shape), leaf.dtype)
        for name, leaf in backbone.conditioner.spec().items()
    }
    inputs = jnp.zeros((1, side, side, backbone.latent_channels)), jnp.zeros((1,)), condition
    return (*inputs, jnp.zeros((1, dim))) if dim else inputs
