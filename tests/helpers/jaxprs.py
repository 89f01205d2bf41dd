"""What a traced function computes."""

import jax
from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def convolution_batches(function, *arguments) -> set[int]:
    """The batch sizes of the convolutions that a function computes."""
    found = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    return {
        eqn.invars[0].aval.shape[0] for eqn in found if eqn.primitive.name == "conv_general_dilated"
    }
