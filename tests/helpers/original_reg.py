"""REG's SiT, loss and sampler, from a checkout of its code."""

import functools
import os
import pathlib

import torch
from checkouts import module_of

REG = os.environ.get("REG_ORIGINAL")
REASON = "set REG_ORIGINAL to a checkout of Martinser/REG (it needs timm)"


def original(path):
    """One file of the checkout as a module."""
    file = pathlib.Path(REG) / path
    return module_of(file, f"reg_original_{file.stem}")


def original_sit(*, latent_size, latent_channels, teacher_dims, class_token_dim, **config):
    """REG's SiT, in evaluation; its class token has the width of the first teacher."""
    assert class_token_dim == teacher_dims[0]
    module = original("models/sit.py")
    # timm's attention took LayerNorm for granted when the original was written.
    module.Attention = functools.partial(module.Attention, norm_layer=torch.nn.LayerNorm)
    return module.SiT(
        input_size=latent_size,
        in_channels=latent_channels,
        z_dims=list(teacher_dims),
        decoder_hidden_size=config["hidden_size"],
        **{"qk_norm": False, **config},
    ).eval()


def run(model, x, t, labels, class_token):
    """Velocities of latents and class token, and the projections."""
    velocity, projections, token = model(x, t, labels, cls_token=class_token)
    return velocity, token, projections
