"""The original implementation from a checkout of it, at full size, for benchmarks beside ours.

Its modules, and the statements of its loops, are run as they stand there, by the same code as the
parity tests use.
"""

import argparse
import os
import pathlib
import sys
import types

HELPERS = pathlib.Path(__file__).parents[1] / "tests" / "helpers"


def add_original(parser: argparse.ArgumentParser) -> None:
    """The option that names the checkout."""
    parser.add_argument("--original", required=True, help="a checkout of the original REPA-E")


def load(checkout: str) -> types.SimpleNamespace:
    """The tests' modules that run it: `networks`, `loop`, `comparison` and `parity`.

    To be called before anything else imports torch: an old torchvision is made to import, too.
    """
    if not (pathlib.Path(checkout) / "train_repae.py").exists():
        sys.exit(
            f"--original {checkout}: there is no train_repae.py; clone End2End-Diffusion/REPA-E"
        )
    os.environ["REPAE_ORIGINAL"] = checkout
    sys.path[:0] = [str(HELPERS)]
    import original_comparison
    import original_loop
    import original_networks
    import parity

    return types.SimpleNamespace(
        networks=original_networks,
        loop=original_loop,
        comparison=original_comparison,
        parity=parity,
    )


def sit(original, arch: str, *, latent_size: int, latent_channels: int, teacher_dims=(768,)):
    """Its SiT of that name, every weight and latent statistic random, with fused attention."""
    import torch

    model = original.networks.modules().sit.SiT_models[arch](
        input_size=latent_size,
        in_channels=latent_channels,
        num_classes=1000,
        class_dropout_prob=0.1,
        z_dims=list(teacher_dims),
        encoder_depth=8,
        bn_momentum=0.1,
        fused_attn=True,
        qk_norm=False,
    )
    model = original.parity.randomise(model)
    draw = torch.Generator().manual_seed(0)
    scale, bias = (
        torch.rand(latent_channels, generator=draw),
        torch.randn(latent_channels, generator=draw),
    )
    model.init_bn(latents_scale=0.5 + scale, latents_bias=bias)
    return model


def vae(original, arch: str):
    """Its VAE of that name, every weight random."""
    return original.parity.randomise(original.networks.modules().autoencoder.vae_models[arch]())
