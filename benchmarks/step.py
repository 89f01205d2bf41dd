r"""Images per second of the train step here and of the original's, in turns in one run.

    python benchmarks/step.py repae --original PATH/TO/REPA-E     # the VAE and the SiT jointly
    python benchmarks/step.py ldm   --original PATH/TO/REPA-E     # the SiT on cached latents

    python benchmarks/step.py repae --original PATH/TO/REPA-E --device cuda --dtype bfloat16 \
        --compile --arch SiT-XL/2 --vae f8d4 --resolution 256 --batch-size 64      # on a GPU

The same random weights, images, draws and teacher tokens on both sides, every network at full size:
SiT, VAE, LPIPS' VGG16, the discriminator, all terms on, updates and moving average included. The
original's side is the statements of its own loop, eager and, with --compile, as its --compile does
it; its bfloat16 is autocast, with TF32 in the loss terms, as it ships. Each side has a process of
its own; what both log must agree before anything is timed.
"""

import argparse
import contextlib
import dataclasses
import os
import types
from collections.abc import Callable
from typing import Any

import flops
import numpy as np
import original as originals
from side_by_side import alternate, at_once, processes, report

from repae_jax.utils import process_env

TEACHER_DIM = 768
FACTORS, CHANNELS = {"f8d4": 8, "f16d32": 16}, {"f8d4": 4, "f16d32": 32}
# Relative differences of the first step's metrics that rounding explains.
AGREE = {"float32": 1e-3, "bfloat16": 1e-1}
EAGER, COMPILED = "original", "original, compiled"
PEAK = "peak_memory"  # GB that a side has held on a GPU at most
OURS_ALONE = ("latent_std", "skipped", PEAK)
THEIRS_ALONE = ("epoch", "d_weight", "discriminator_factor", PEAK)


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


def make_ours(original, networks, batch, draws, options) -> Callable[[], dict[str, float]]:
    """A call that makes the next steps of ours, by default one; returns the last one's metrics."""
    import jax

    from repae_jax.objectives.objective import Objective
    from repae_jax.runs.optimizers import adamw
    from repae_jax.training.step import make_train_step

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
    step = jax.jit(make_train_step(models, objective, optimizers), donate_argnums=0)
    batch, draws = jax.device_put((batch, draws))

    def call(steps: int = 1, trace: str | None = None):
        """Make steps as the loop does: it reads what one gave while the next one runs."""
        nonlocal state
        metrics = None
        with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
            for _ in range(steps):
                before = metrics
                state, metrics = step(state, batch, draws)
                jax.device_get(before)
            metrics = jax.device_get(metrics)
        return {name: float(value) for name, value in metrics.items()}

    return call


def make_theirs(original, networks, batch, draws, options, *, compiled: bool = False):
    """A call that makes the next steps of the original's loop; returns what it logs of the last."""
    import torch

    networks = {name: part.to(options.device) for name, part in networks.items()}
    loop = original.loop
    script = loop.REPAE if options.recipe == "repae" else loop.LDM_ONLY
    args = loop.default_args(script, compile=compiled)
    trained = dict(networks)
    cached = {}
    if options.recipe == "ldm":
        cached["latents"] = original.latents
        trained.pop("tokenizer")
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

    def call(steps: int = 1):
        for _ in range(steps):
            logged = original.comparison.their_step(
                training, batch, draws, device=options.device, **cached
            )
        return logged

    return call


def make_side(name: str, options: argparse.Namespace) -> Callable[[], dict[str, float]]:
    """One of the sides, with the same weights, batch and draws as the others; in its process."""
    if name == "ours":
        process_env.prepare()  # as the command line does
    original = originals.load(options.original)
    batch, draws = make_batch(options)
    networks = make_networks(original, options)
    if options.recipe == "ldm":
        original.latents = original.comparison.moments(networks["tokenizer"], batch["image"])
    given = (original, networks, batch, draws, options)
    if name == "ours":
        call, peak = make_ours(*given), _jax_peak
    else:
        call, peak = make_theirs(*given, compiled=name == COMPILED), _torch_peak
    return call if options.device == "cpu" else _with_peak(call, peak)


def _with_peak(call, peak):
    """`call` that tells the GPU's memory, too."""
    return lambda *arguments: {**call(*arguments), PEAK: peak() / 1e9}


def _jax_peak():
    import jax

    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]


def _torch_peak():
    import torch

    return torch.cuda.max_memory_allocated()


def work(options: argparse.Namespace) -> float:
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


def differences(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """The relative difference of every metric."""
    names = sorted(set(ours) - set(OURS_ALONE))
    theirs = {name: value for name, value in theirs.items() if name not in THEIRS_ALONE}
    assert names == sorted(theirs), set(names) ^ set(theirs)
    return {name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in names}


def main() -> None:
    """Check that both make the same step, time them in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=["repae", "ldm"])
    originals.add_original(parser)
    parser.add_argument("--arch", default="SiT-B/2")
    parser.add_argument("--vae", default="f8d4", choices=FACTORS)
    parser.add_argument("--dtype", default="float32", choices=AGREE)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", nargs="?", const="too", choices=["too", "only"],
        help="the original with torch.compile too, or only so: three full-size sides hold 26 GB",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="DIR", help="an XProf trace of a step of ours goes there"
    )
    options = parser.parse_args()
    if options.device == "cuda":  # the sides share its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    theirs = {None: [EAGER], "too": [EAGER, COMPILED], "only": [COMPILED]}[options.compile]
    with processes([*theirs, "ours"], make_side, options) as sides:
        first = at_once(sides)
        ours, others = first["ours"], first[theirs[0]]
        apart = differences(ours, others)
        worst = max(apart, key=apart.get)
        print(f"the first step's metrics agree within {apart[worst]:.1e} ({worst})", flush=True)
        same = apart[worst] <= AGREE[options.dtype]
        if not same and options.device == "cpu":
            raise SystemExit(f"ours {ours[worst]}, theirs {others[worst]}: not the same step")
        seconds = alternate(sides, options.repeats, warm_up=0, settle=1)
        if options.trace:
            sides["ours"](1, options.trace)
    peaks = {name: metrics[PEAK] for name, metrics in first.items() if PEAK in metrics}
    rates = report(
        f"{options.recipe}: {options.arch}, {options.vae} at {options.resolution} x "
        f"{options.resolution}, batch {options.batch_size}, {options.dtype}",
        seconds,
        options.batch_size,
        apart=apart,
        peak_memory=peaks,
    )
    gflop = work(options)
    print(f"\n{gflop:.0f} GFLOP an image by arithmetic:")
    for name, rate in rates.items():
        print(f"  {name}: {rate * gflop / 1e3:.3f} TFLOP/s")
    for name, peak in peaks.items():
        print(f"  {name}: {peak:.1f} GB at most")
    if not same:
        raise SystemExit(f"{worst}: ours {ours[worst]}, theirs {others[worst]}: not the same step")


if __name__ == "__main__":
    main()
