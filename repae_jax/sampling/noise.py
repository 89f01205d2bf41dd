"""The noise of generated images, which depends on the key and on each image's index alone."""

import math

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.sampling.integrate import State, StepNoise


def image_noise(
    key: jax.Array, indices: jax.Array, shape: tuple[int, ...], class_token_dim: int = 0
) -> State:
    """The initial standard normal noise (B, *shape) of the images with the given `indices` (B,).

    The noise depends on the key and the image's index alone, so image i is the same in every batch
    and on any number of devices. The same key may serve `step_noise`.

    With `class_token_dim` it is a pair: this noise, and that of a class token (B, class_token_dim).

    Raises:
      UserError: the key's generator is another than threefry2x32, whose vectorized numbers are
        independent of the batch.
    """
    return _noise(key, indices, 0, shape, class_token_dim)


def step_noise(
    key: jax.Array, indices: jax.Array, shape: tuple[int, ...], class_token_dim: int = 0
) -> StepNoise:
    """Make the function i -> standard normal noise of step i, for `sample`; see `image_noise`.

    The noise depends on the key, the image's index and the step alone.

    Raises:
      UserError: the returned function raises it for a key of another generator than threefry2x32.
    """
    return lambda step: _noise(key, indices, step + 1, shape, class_token_dim)


def _noise(key: jax.Array, indices: jax.Array, draw: jax.Array | int, shape, class_token_dim):
    """Random draw number `draw` of each image's stream: 0 is the initial noise, i + 1 step i's."""
    if jax.random.key_impl(key) != "threefry2x32":
        # Under vmap, the other generators make one image's numbers depend on the rest of the batch.
        raise UserError(
            f"the key's generator is {jax.random.key_impl(key)}: "
            "make the key with jax.random.key(seed, impl='threefry2x32')"
        )
    count = math.prod(shape)

    def one(index):
        key_of_draw = jax.random.fold_in(jax.random.fold_in(key, index), draw)
        if not class_token_dim:
            return jax.random.normal(key_of_draw, shape)
        both = jax.random.normal(key_of_draw, (count + class_token_dim,))
        return both[:count].reshape(shape), both[count:]

    return jax.vmap(one)(jnp.asarray(indices))
