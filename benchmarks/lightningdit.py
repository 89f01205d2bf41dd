"""LightningDiT's step of benchmarks/step.py, on cached latents: here, and its authors'."""

import argparse
from collections.abc import Callable

import flops
import original as originals

DEFAULTS = {"arch": "LightningDiT-B/1", "vae": "f16d32", "resolution": 256, "batch_size": 8}


def make_config(options: argparse.Namespace):
    """The published configuration at the size that is asked for."""
    from repae_jax.config import apply_recipe, backbone, lightningdit256, tokenizer

    config = apply_recipe(lightningdit256(), "vanilla")
    config.update(dtype=options.dtype, batch_size=options.batch_size)
    config.data.resolution = options.resolution
    config.tokenizer, config.backbone = tokenizer(options.vae), backbone(options.arch)
    return config


def make_inputs(options: argparse.Namespace, *, compiled: bool = False):
    """The helpers of the tests, our configuration and networks, and their model at random."""
    from repae_jax.runs.build import build_models

    original = originals.load_lightningdit(options.original)
    config = make_config(options)
    models = build_models(config)
    backbone = models.backbone
    model = original.lightningdit.original_lightningdit(
        compiled=compiled, input_size=backbone.latent_size, in_channels=backbone.latent_channels,
        patch_size=backbone.patch_size, hidden_size=backbone.hidden_size, depth=backbone.depth,
        num_heads=backbone.num_heads, num_classes=config.data.num_classes,
    )  # fmt: skip
    return original, config, models, original.parity.randomise(model)


def ours(options: argparse.Namespace):
    """Our step, and its first arguments: state, batch and draws."""
    from repae_jax.runs.build import build_objective, build_optimizers
    from repae_jax.training.step import make_train_step

    original, config, models, model = make_inputs(options)
    state = original.loop.our_state(model, config, models)
    step = make_train_step(
        models, build_objective(config), build_optimizers(config), ema_decay=config.ema_decay
    )
    return step, (state, *original.loop.make_batch(config, models))


def theirs(options: argparse.Namespace, *, compiled: bool = False) -> Callable[[], dict]:
    """A call that makes the next step of their loop, and returns what it logs.

    The first gives the norm of the gradients besides, which their loop does not take.
    """
    original, config, models, model = make_inputs(options, compiled=compiled)
    loop = original.loop
    statistics = loop.latent_statistics(models)
    batch, draws = loop.make_batch(config, models)
    inputs = loop.their_inputs(
        batch, draws, statistics, config.data.num_classes, device=options.device
    )
    training = loop.Training(model.to(options.device), autocast=options.dtype == "bfloat16")
    first = True

    def step():
        nonlocal first
        logged = training.step(*inputs)
        if first:
            logged["grad_norm_sit"] = training.gradient_norm()
        first = False
        return logged

    return step


def gflop(options: argparse.Namespace) -> float:
    """GFLOP of an image's step, by arithmetic (benchmarks/flops.py)."""
    from repae_jax.runs.build import build_models

    config = make_config(options)
    return sum(flops.arithmetic(config, build_models(config), latents=True).values()) / 1e9
