r"""Images per second of the train step here and of the original's, in turns in one run.

    python benchmarks/step.py repae --original PATH/TO/REPA-E     # the VAE and the SiT jointly
    python benchmarks/step.py ldm   --original PATH/TO/REPA-E     # the SiT on cached latents
    python benchmarks/step.py lightningdit --original PATH/TO/LightningDiT       # on those as well

    python benchmarks/step.py repae --original PATH/TO/REPA-E --device cuda --dtype bfloat16 \
        --compile --arch SiT-XL/2 --vae f8d4 --resolution 256 --batch-size 64      # on a GPU

The same random weights, images, draws and teacher tokens on both sides, every network at full size:
for "repae" SiT, VAE, LPIPS' VGG16, the discriminator, all terms on, updates and moving average
included. The original's side is the statements of its own loop, eager and, with --compile, with
torch.compile as it uses it; its bfloat16 is autocast, as it ships. Each side has a process of its
own; what all log must agree before anything is timed.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Sequence

import lightningdit
import original as originals
import repae
from side_by_side import alternate, at_once, processes, report

from repae_jax.utils import process_env

RECIPES = {"repae": repae, "ldm": repae, "lightningdit": lightningdit}
# Relative differences of the first step's metrics that rounding explains.
AGREE = {"float32": 1e-3, "bfloat16": 1e-1}
EAGER, COMPILED = "original", "original, compiled"
PEAK = "peak_memory"  # GB that a side has held on a GPU at most
OURS_ALONE = ("latent_std", "skipped", PEAK)
THEIRS_ALONE = ("epoch", "d_weight", "discriminator_factor", PEAK)


def calls_of_ours(train_step, arguments) -> Callable[..., dict[str, float]]:
    """A call that makes the next steps of ours, by default one; returns the last one's metrics."""
    import jax

    step = jax.jit(train_step, donate_argnums=0)
    state, *inputs = arguments
    inputs = jax.device_put(inputs)

    def call(steps: int = 1, trace: str | None = None):
        """Make steps as the loop does: it reads what one gave while the next one runs."""
        nonlocal state
        metrics = None
        with jax.profiler.trace(trace) if trace else contextlib.nullcontext():
            for _ in range(steps):
                before = metrics
                state, metrics = step(state, *inputs)
                jax.device_get(before)
            metrics = jax.device_get(metrics)
        return {name: float(value) for name, value in metrics.items()}

    return call


def calls_of_theirs(step: Callable[[], dict[str, float]]) -> Callable[..., dict[str, float]]:
    """A call that makes the next steps of theirs; returns what they log of the last."""

    def call(steps: int = 1):
        for _ in range(steps):
            logged = step()
        return logged

    return call


def make_side(name: str, options: argparse.Namespace) -> Callable[..., dict[str, float]]:
    """One of the sides, with the same weights, batch and draws as the others; in its process."""
    recipe = RECIPES[options.recipe]
    if name == "ours":
        process_env.prepare()  # as the command line does
        call, peak = calls_of_ours(*recipe.ours(options)), _jax_peak
    else:
        call, peak = calls_of_theirs(recipe.theirs(options, compiled=name == COMPILED)), _torch_peak
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
    return RECIPES[options.recipe].gflop(options)


def differences(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """The relative difference of every metric."""
    names = sorted(set(ours) - set(OURS_ALONE))
    theirs = {name: value for name, value in theirs.items() if name not in THEIRS_ALONE}
    assert names == sorted(theirs), set(names) ^ set(theirs)
    return {name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6) for name in names}


def largest(apart: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the sides' differences, the largest of every metric."""
    return {name: max(side[name] for side in apart) for name in apart[0]}


def main() -> None:
    """Check that both make the same step, time them in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", choices=RECIPES)
    originals.add_original(parser)
    parser.add_argument("--arch", help="default: SiT-B/2, or LightningDiT-B/1")
    parser.add_argument("--vae", choices=repae.FACTORS, help="default: f8d4, or f16d32")
    parser.add_argument("--dtype", default="float32", choices=AGREE)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--resolution", type=int, help="default: 128, or 256 for LightningDiT")
    parser.add_argument("--batch-size", type=int, help="default: 4, or 8 for LightningDiT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", nargs="?", const="too", choices=["too", "only"],
        help="the original with torch.compile too, or only so: three full-size sides hold 26 GB",
    )  # fmt: skip
    parser.add_argument(
        "--trace", metavar="DIR", help="an XProf trace of a step of ours goes there"
    )
    options = parser.parse_args()
    for name, value in RECIPES[options.recipe].DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.device == "cuda":  # the sides share its memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    theirs = {None: [EAGER], "too": [EAGER, COMPILED], "only": [COMPILED]}[options.compile]
    with processes([*theirs, "ours"], make_side, options) as sides:
        first = at_once(sides)
        ours = first["ours"]
        apart = largest([differences(ours, first[name]) for name in theirs])
        worst = max(apart, key=apart.get)
        print(f"the first step's metrics agree within {apart[worst]:.1e} ({worst})", flush=True)
        same = apart[worst] <= AGREE[options.dtype]
        others = ", ".join(f"{name} {first[name][worst]}" for name in theirs)
        if not same and options.device == "cpu":
            raise SystemExit(f"ours {ours[worst]}, {others}: not the same step")
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
        raise SystemExit(f"{worst}: ours {ours[worst]}, {others}: not the same step")


if __name__ == "__main__":
    main()
