"""Rematerialisation: what the backward pass recomputes in place of keeping it in memory."""

import flax.linen as nn
import jax

# What is kept of a block for the backward pass.
POLICIES = {
    "none": "everything",
    "products": "the results of convolutions and linear layers; the cheap rest is recomputed",
    "blocks": "the block's input alone; one more forward pass",
}


def rematerialised(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module's class with a policy of `POLICIES`; parameters and results are the same."""
    if policy == "none":
        return module
    if policy not in POLICIES:
        raise ValueError(f"no rematerialisation {policy!r}: use one of {', '.join(POLICIES)}")
    return nn.remat(module, policy=_keep_products if policy == "products" else None)


def _keep_products(primitive, *operands, **parameters) -> bool:
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *operands, **parameters
    )
