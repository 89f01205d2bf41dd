"""A term's weight from the gradients at one layer (VQGAN, arXiv 2012.09841, equation 7)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


def adaptive_weight(
    reference: jax.Array, gradient: jax.Array, *, epsilon: float, limit: float
) -> jax.Array:
    """|reference| / (|gradient| + epsilon), at most `limit`; a scalar that carries no gradient.

    Args:
      reference: the gradient of the reconstruction's terms at a parameter.
      gradient: the gradient, at the same parameter, of the term that takes the weight.
      epsilon: 1e-6 in RAE; 1e-4 in VQGAN and VA-VAE.
      limit: 1e4 for the adversarial term in all three; 1e8 for VA-VAE's alignment.
    """
    norms = jnp.linalg.norm(reference.ravel()), jnp.linalg.norm(gradient.ravel())
    return stop_gradient(jnp.clip(norms[0] / (norms[1] + epsilon), 0.0, limit))


def gradients_at(
    path: str,
    params: Mapping[str, Any],
    forward: Callable[[Mapping[str, Any]], Any],
    *terms: Callable[[Any], jax.Array],
) -> list[jax.Array]:
    """The gradients of scalar terms of `forward(params)` at the one parameter `path`.

    The layers before that parameter are evaluated, and not differentiated.

    Args:
      path: the parameter's path, such as "decoder/conv_out/kernel".
      params: nested parameters.
      forward: params -> a tree of arrays.
      terms: (that tree) -> a scalar each.

    Raises:
      KeyError: `params` have no such parameter.
    """
    names, params = path.split("/"), stop_gradient(params)
    leaf = _at(params, names)
    output, pull_back = jax.vjp(lambda leaf: forward(_with(params, names, leaf)), leaf)
    return [pull_back(jax.grad(term)(output))[0] for term in terms]


def _at(tree, names):
    for name in names:
        tree = tree[name]
    return tree


def _with(tree, names, leaf):
    """A copy of the nested dict with another leaf."""
    first, *rest = names
    return {**tree, first: _with(tree[first], rest, leaf) if rest else leaf}
