"""Floating-point operations of a traced program: those of its products, which are nearly all."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from repae_jax.models.layers import attention_kernel


def count_flops(function: Callable, *arguments: Any) -> int:
    """Operations of `function(*arguments)`: two for each multiplication and addition.

    Counted in matrix products and convolutions of the traced program, each as often as it runs:
    a loop's body as often as the loop turns (a `while` without a fixed number once), the dearest
    branch of a condition, and what the backward pass recomputes once more. A convolution counts
    every tap of its kernel, also those that fall on padding.

    Args:
      function: what `jax.jit` could compile.
      arguments: arrays, or their shapes.
    """
    with attention_kernel("xla"):  # its products can be seen
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
    """The programs within an operation: of calls, loops, custom derivatives."""
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
    """Every tap of the kernel meets every place that it does not skip.

    Of a strided convolution's gradients, one has a dilated input and one a dilated kernel: the
    zeros between are no work, so the taps are counted as those of the convolution itself.
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
