"""Rematerialization: the backward pass recomputes activations instead of keeping them in memory."""

import flax.linen as nn
import jax

# policy -> the activations of a block that are kept for the backward pass
POLICIES = {
    "none": "everything",
    "products": "the results of convolutions and linear layers; the cheap rest is recomputed",
    "blocks": "the block's input alone; one more forward pass",
}


def rematerialize(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """The module's class under a policy of `POLICIES`; parameters and results stay the same.

    Raises:
      ValueError: an unknown policy.
    """
    if policy == "none":
        return module
    if policy not in POLICIES:
        raise ValueError(f"unknown remat policy {policy!r}: use one of {', '.join(POLICIES)}")
    return nn.remat(module, policy=_keep_products if policy == "products" else None)


def _keep_products(primitive, *operands, **parameters) -> bool:
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *operands, **parameters
    )
