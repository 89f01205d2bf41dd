"""REPA-E's step of benchmarks/step.py, with and without the VAE: here, and the original's.

The original's torch.compile is that of its --compile; its bfloat16 has TF32 in the loss terms.
"""

import argparse
import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import flops
import numpy as np
import original as originals

DEFAULTS = {"arch": "SiT-B/2", "vae": "f8d4", "resolution": 128, "batch_size": 4}
TEACHER_DIM = 768
FACTORS, CHANNELS = {"f8d4": 8, "f16d32": 16}, {"f8d4": 4, "f16d32": 32}


def latent_side(options: argparse.Namespace) -> int:
    """Positions along a side of the latents."""
    return options.resolution // FACTORS[options.vae]


def make_batch(options: argparse.Namespace):
    """Images, labels and teacher tokens, and the step's draws, in our layout."""
    from repae_jax.training.noise import Draws

    rng = np.random.default_rng(0)
    count = options.batch_size
    side = latent_side(options)
    pixels, grid = options.resolution, side // int(options.arch.partition("/")[2])
    latents = (count, side, side, CHANNELS[options.vae])
    batch = {
        "image": rng.integers(0, 256, (count, pixels, pixels, 3), dtype=np.uint8),
        "label": rng.integers(0, 1000, count).astype(np.int32),
        "teacher_tokens": (rng.normal(size=(count, grid**2, TEACHER_DIM)).astype(np.float32),),
    }
    draws = Draws(
        posterior_noise=rng.normal(size=latents).astype(np.float32),
        time=rng.uniform(size=count).astype(np.float32),
        noise=rng.normal(size=latents).astype(np.float32),
        condition_drop=np.arange(count) == 0,
    )
    return batch, draws


def make_models(options: argparse.Namespace):
    """Our networks."""
    import jax.numpy as jnp

    from repae_jax.models.backbones.sit import SIT_CONFIGS, SiT
    from repae_jax.models.batch_norm import LatentNorm
    from repae_jax.models.conditioning.class_label import ClassLabel
    from repae_jax.models.discriminator import PatchDiscriminator
    from repae_jax.models.lpips import LPIPS
    from repae_jax.models.networks import Models
    from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS, AutoencoderKL

    dtype = jnp.dtype(options.dtype)
    sit = SiT(
        **SIT_CONFIGS[options.arch], latent_size=latent_side(options),
        latent_channels=CHANNELS[options.vae], conditioner=ClassLabel(1000),
        teacher_dims=(TEACHER_DIM,), dtype=dtype,
    )  # fmt: skip
    return Models(
        tokenizer=AutoencoderKL(**VAE_CONFIGS[options.vae], dtype=dtype),
        backbone=sit,
        latent_norm=LatentNorm(),
        discriminator=PatchDiscriminator(dtype=dtype),
        lpips=LPIPS(rescale_inputs=True, dtype=dtype),
    )


def make_networks(original, options: argparse.Namespace) -> dict[str, Any]:
    """The original's, under the names of its loop."""
    channels = CHANNELS[options.vae]
    networks = {
        "model": originals.sit(
            original, options.arch, latent_size=latent_side(options), latent_channels=channels
        ),
        "vae": originals.vae(original, options.vae),
    }
    if options.recipe == "repae":
        loss = original.networks.make_vae_loss(3, filters=64, vgg_shrink=1)
        networks["vae_loss_fn"] = loss
    return networks


def make_inputs(options: argparse.Namespace):
    """The original, its networks, and the batch and draws of both sides."""
    original = originals.load(options.original)
    batch, draws = make_batch(options)
    networks = make_networks(original, options)
    if options.recipe == "ldm":
        original.latents = original.comparison.moments(networks["vae"], batch["image"])
    return original, networks, batch, draws


def ours(options: argparse.Namespace):
    """Our step, and its first arguments: state, batch and draws."""
    from repae_jax.objectives.objective import Objective
    from repae_jax.runs.optimizers import adamw
    from repae_jax.training.step import make_train_step

    original, networks, batch, draws = make_inputs(options)
    models = make_models(options)
    state = original.comparison.our_state(networks, models)
    optimizers = {name: adamw(1e-4) for name in state.opt_state}
    objective = Objective(latent_norm="batch" if options.recipe == "repae" else "fixed")
    if options.recipe == "ldm":
        mean, std = original.latents.numpy().transpose(0, 2, 3, 1).reshape(
            options.batch_size, latent_side(options), latent_side(options), 2, -1
        ).transpose(3, 0, 1, 2, 4)  # fmt: skip
        batch = {k: v for k, v in batch.items() if k != "image"}
        batch |= {"latent_mean": mean, "latent_std": std}
    return make_train_step(models, objective, optimizers), (state, batch, draws)


def theirs(options: argparse.Namespace, *, compiled: bool = False) -> Callable[[], dict]:
    """A call that makes the next step of the original's loop, and returns what it logs."""
    import torch

    original, networks, batch, draws = make_inputs(options)
    networks = {name: part.to(options.device) for name, part in networks.items()}
    loop = original.loop
    script = loop.REPAE if options.recipe == "repae" else loop.LDM_ONLY
    args = loop.default_args(script, compile=compiled)
    trained = dict(networks)
    cached = {}
    if options.recipe == "ldm":
        cached["latents"] = original.latents
        trained.pop("vae")
    training = loop.Training(script, args, trained, loop.default_ema_decay(script))
    if options.dtype == "bfloat16":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        accelerator = training.scope["accelerator"]
        accelerator.autocast = lambda: torch.autocast(options.device, dtype=torch.bfloat16)
    if compiled:  # as its script does
        torch._dynamo.config.cache_size_limit = 64
        torch._dynamo.config.accumulated_cache_size_limit = 512
        for name in trained:  # the same parameters: optimizers and average stay as they are
            training.scope[name] = torch.compile(trained[name], backend="inductor", mode="default")
    return functools.partial(
        original.comparison.their_step, training, batch, draws, device=options.device, **cached
    )


def gflop(options: argparse.Namespace) -> float:
    """GFLOP of an image's step, by arithmetic (benchmarks/flops.py), without the teachers."""
    trained = (
        ("backbone", "tokenizer", "discriminator") if options.recipe == "repae" else ("backbone",)
    )
    config = types.SimpleNamespace(
        data=types.SimpleNamespace(resolution=options.resolution), train=trained
    )
    models = make_models(options)
    if options.recipe == "ldm":
        whole, _, heads = flops.transformer(models.backbone)
        return 3 * (whole + heads) / 1e9
    models = dataclasses.replace(models, teachers={"given": None})
    parts = flops.arithmetic(config, models, teachers=False)
    return sum(parts.values()) / 1e9
