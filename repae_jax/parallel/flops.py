"""Floating-point operations of a traced program, counted in its matrix products and convolutions.

All other operations together are few in comparison.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from repae_jax.models.layers import attention_kernel


def count_flops(function: Callable, *arguments: Any) -> int:
    """The operations of `function(*arguments)`: a multiplication with its addition counts as two.

    A loop's body counts once per iteration (the body of a `while` without a fixed length once), a
    condition counts its most expensive branch, and products that the backward pass recomputes
    count again. A convolution counts every tap of its kernel, also where a tap falls on padding.

    Args:
      function: a function that `jax.jit` can compile.
      arguments: arrays or their shapes.
    """
    with attention_kernel("xla"):  # the products of a fused kernel would be hidden
        return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    return times * sum(map(_of_jaxpr, _inner(parameters)))


def _inner(parameters):
    """The programs within an operation: bodies of calls, loops and custom derivatives."""
    for key, value in parameters.items():
        if key in ("fwd_jaxpr_thunk", "jvp_jaxpr_fun", "cond_jaxpr"):
            continue
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _of_product(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation) -> int:
    """2 * kernel taps * positions.

    The gradients of a strided convolution have a dilated input or a dilated kernel. The zeros in
    between cost nothing, so a gradient counts as many operations as the convolution itself.
    """
    numbers = equation.params["dimension_numbers"]
    inputs, kernel = (variable.aval.shape for variable in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    features, *window = (kernel[axis] for axis in numbers.rhs_spec[1:])
    positions = out
    if math.prod(equation.params["lhs_dilation"]) > 1:
        places = [inputs[axis] for axis in numbers.lhs_spec[2:]]
        positions = (out[numbers.out_spec[0]], out[numbers.out_spec[1]], *places)
    return 2 * math.prod(positions) * math.prod(window) * features
