"""A velocity for the tests of samplers, which knows time and labels."""

import jax.numpy as jnp
import numpy as np

SHAPE, CLASSES = (3, 2, 4), 5
NULL_LABEL = CLASSES
MIX = np.random.default_rng(0).normal(size=(CLASSES + 1, SHAPE[-1], SHAPE[-1])) * 0.8


def field(x, t, labels, xp):
    """A velocity, nonlinear in x and t, in which each label mixes the channels its own way."""
    mix = xp.asarray(MIX, x.dtype)[labels]
    t = t[:, None, None, None]
    return 2 * xp.tanh(xp.einsum("bhwc,bcd->bhwd", x, mix) * (1 + t)) + x * (t - 0.5)


def velocity(x, t, labels):
    return field(x, t, labels, jnp)
