"""The original implementations from checkouts, at full size, for benchmarks beside ours.

The code of the parity tests runs their modules and the statements of their loops, unchanged.
"""

import argparse
import os
import pathlib
import sys
import types

HELPERS = pathlib.Path(__file__).parents[1] / "tests" / "helpers"


def add_original(parser: argparse.ArgumentParser) -> None:
    """The option that names the checkout."""
    parser.add_argument("--original", required=True, help="a checkout of the original code")


def load(checkout: str) -> types.SimpleNamespace:
    """The tests' modules that run REPA-E's: `networks`, `loop`, `comparison` and `parity`.

    To be called before anything else imports torch: an old torchvision is made to import, too.
    """
    _prepare(checkout, "train_repae.py", "End2End-Diffusion/REPA-E", "REPAE_ORIGINAL")
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


def load_lightningdit(checkout: str) -> types.SimpleNamespace:
    """The same for LightningDiT's: `lightningdit`, `loop` and `parity`."""
    _prepare(checkout, "models/lightningdit.py", "hustvl/LightningDiT", "LIGHTNINGDIT_ORIGINAL")
    import original_lightningdit
    import original_lightningdit_loop
    import parity

    return types.SimpleNamespace(
        lightningdit=original_lightningdit, loop=original_lightningdit_loop, parity=parity
    )


def _prepare(checkout: str, file: str, repository: str, variable: str) -> None:
    """Check that it is a checkout of that repository, and show it to the tests' modules."""
    if not (pathlib.Path(checkout) / file).exists():
        sys.exit(f"--original {checkout}: there is no {file}; clone {repository}")
    os.environ[variable] = checkout
    sys.path[:0] = [str(HELPERS)]


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
