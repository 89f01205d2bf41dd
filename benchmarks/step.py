"""Images per second of the train step here and of the original's, side by side in one run.

    python benchmarks/step.py repae --original PATH/TO/REPA-E     # the VAE and the SiT jointly
    python benchmarks/step.py ldm   --original PATH/TO/REPA-E     # the SiT on cached latents

The same random weights, images, draws and teacher tokens on both sides, float32, every network at
full size: SiT-B/2, f8d4, LPIPS' VGG16, the discriminator, all terms on, updates and moving average
included. The original's side is the statements of its own loop, eager and, with --compile, as its
--compile does it. What both log must agree before anything is timed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import original as originals
from side_by_side import alternate, report

TEACHER_DIM = 768
AGREE = 1e-3  # relative: of float32 at full size, and no tighter than both sides' own rounding
OURS_ALONE = ("latent_std", "skipped")


def make_batch(options: argparse.Namespace, side: int):
    """Images, labels and teacher tokens, and the step's draws, in our layout."""
    from repae_jax.training.draws import Draws

    rng = np.random.default_rng(0)
    count = options.batch_size
    latents = (count, side, side, 4)
    batch = {
        "image": rng.integers(0, 256, (count, 8 * side, 8 * side, 3), dtype=np.uint8),
        "label": rng.integers(0, 1000, count).astype(np.int32),
        "teacher_tokens": (rng.normal(size=(count, side**2 // 4, TEACHER_DIM)).astype(np.float32),),
    }
    draws = Draws(
        posterior_noise=rng.normal(size=latents).astype(np.float32),
        time=rng.uniform(size=count).astype(np.float32),
        noise=rng.normal(size=latents).astype(np.float32),
        label_drop=np.arange(count) == 0,
    )
    return batch, draws


def make_models(options: argparse.Namespace, side: int):
    """Our networks."""
    from repae_jax.models.autoencoder_kl import VAE_CONFIGS, AutoencoderKL
    from repae_jax.models.batch_norm import LatentNorm
    from repae_jax.models.discriminator import PatchDiscriminator
    from repae_jax.models.lpips import LPIPS
    from repae_jax.models.sit import SIT_CONFIGS, SiT
    from repae_jax.training.recipe import Models

    sit = SiT(
        **SIT_CONFIGS[options.arch], latent_size=side, latent_channels=4, num_classes=1000,
        teacher_dims=(TEACHER_DIM,),
    )  # fmt: skip
    return Models(
        vae=AutoencoderKL(**VAE_CONFIGS["f8d4"]),
        sit=sit,
        latent_norm=LatentNorm(),
        discriminator=PatchDiscriminator(),
        lpips=LPIPS(rescale_inputs=True),
    )


def make_networks(original, options: argparse.Namespace, side: int) -> dict[str, Any]:
    """The original's, under the names of its loop."""
    networks = {
        "model": originals.sit(original, options.arch, latent_size=side, latent_channels=4),
        "vae": originals.vae(original, "f8d4"),
    }
    if options.recipe == "repae":
        loss = original.networks.make_vae_loss(3, filters=64, vgg_shrink=1)
        networks["vae_loss_fn"] = loss
    return networks


def make_ours(original, networks, batch, draws, options, side) -> Callable[[], dict[str, float]]:
    """A call that makes the next step of ours; returns its metrics."""
    import jax

    from repae_jax.training.optimizers import adamw
    from repae_jax.training.recipe import Objective
    from repae_jax.training.step import make_train_step

    models = make_models(options, side)
    state = original.comparison.our_state(networks, models)
    optimizers = {name: adamw(1e-4) for name in state.opt_state}
    objective = Objective(latent_norm="batch" if options.recipe == "repae" else "fixed")
    if options.recipe == "ldm":
        mean, std = original.latents.numpy().transpose(0, 2, 3, 1).reshape(
            options.batch_size, side, side, 2, 4
        ).transpose(3, 0, 1, 2, 4)  # fmt: skip
        batch = {k: v for k, v in batch.items() if k != "image"}
        batch |= {"latent_mean": mean, "latent_std": std}
    step = jax.jit(make_train_step(models, objective, optimizers), donate_argnums=0)
    batch, draws = jax.device_put((batch, draws))

    def call():
        nonlocal state
        state, metrics = step(state, batch, draws)
        return {name: float(value) for name, value in metrics.items()}

    return call


def make_theirs(original, networks, batch, draws, options, *, compiled: bool = False):
    """A call that makes the next step of the original's loop; returns what it logs."""
    import copy

    import torch

    networks = copy.deepcopy(networks)
    loop = original.loop
    script = loop.REPAE if options.recipe == "repae" else loop.LDM_ONLY
    args = loop.default_args(script, compile=compiled)
    trained = dict(networks)
    cached = {}
    if options.recipe == "ldm":
        cached["latents"] = original.latents
        trained.pop("vae")
    training = loop.Training(script, args, trained, loop.default_ema_decay(script))
    if compiled:  # the parameters are the same tensors: optimizers and average stay as they are
        for name in trained:
            training.scope[name] = torch.compile(trained[name], backend="inductor", mode="default")
    return lambda: original.comparison.their_step(training, batch, draws, **cached)


def check_agreement(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """The relative difference of every metric; ends the program where one is too large."""
    names = sorted(set(ours) - set(OURS_ALONE))
    assert names == sorted(theirs), set(names) ^ set(theirs)
    apart = {name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in names}
    worst = max(apart, key=apart.get)
    print(f"the first step's metrics agree within {apart[worst]:.1e} ({worst})", flush=True)
    if apart[worst] > AGREE:
        raise SystemExit(f"{worst}: ours {ours[worst]}, theirs {theirs[worst]}: not the same step")
    return apart


def main() -> None:
    """Check that both make the same step, time them in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=["repae", "ldm"])
    originals.add_original(parser)
    parser.add_argument("--arch", default="SiT-B/2")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="the original with torch.compile too"
    )
    options = parser.parse_args()
    original = originals.load(options.original)
    side = options.resolution // 8
    batch, draws = make_batch(options, side)
    networks = make_networks(original, options, side)
    if options.recipe == "ldm":
        original.latents = original.comparison.moments(networks["vae"], batch["image"])
    inputs = (original, networks, batch, draws, options)
    sides = {"original": make_theirs(*inputs)}
    if options.compile:
        sides["original, compiled"] = make_theirs(*inputs, compiled=True)
    sides["ours"] = make_ours(*inputs, side)
    first = {name: call() for name, call in sides.items()}
    apart = check_agreement(first["ours"], first["original"])
    seconds = alternate(sides, options.repeats)
    report(
        f"{options.recipe}: {options.arch}, f8d4 at {options.resolution} x {options.resolution}, "
        f"batch {options.batch_size}, float32",
        seconds,
        options.batch_size,
        apart=apart,
    )


if __name__ == "__main__":
    main()
