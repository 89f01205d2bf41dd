"""What `sample` and `generate` take."""

import argparse
import pathlib
from collections.abc import Callable

from repae_jax.commands.common_arguments import add_processes, add_quiet, add_workdir

Command = Callable[..., argparse.ArgumentParser]

# The keys of config.sampling that both commands can change.
SAMPLER_OPTIONS = ("method", "steps", "guidance_scale", "guidance_low", "guidance_high")

LABELS_HELP = (
    "balanced (default): all classes in turn; random: drawn by the seed; none: unconditional, by "
    "the null class; or classes such as 3,1,4, or a text file of them, repeated up to the count"
)
_GENERATE = """\
Image i depends on the seed, its number i and its class alone: other batches, devices or processes
change no pixel by more than one level. A killed run goes on where it stopped, and ends with the
same bytes. Beside NAME.npz lie NAME.json, which says what it holds, and NAME_preview.png.

examples:
  generate --workdir runs/x --output samples/x.npz                50,000, for FID
  generate --workdir runs/x --output samples/dogs --labels 207,250 --count 64    PNG files
  generate --workdir runs/x --output samples/sde.npz --method euler-maruyama --steps 250 \\
      --guidance-scale 2.5 --guidance-high 0.75
  generate --distributed --workdir ... --output ...               on every host of a pod

An .npz holds arr_0, uint8 (N, H, W, 3), and arr_1, the classes (-1: of no class), as the evaluator
of ADM (openai/guided-diffusion) reads them; most tables of FID on ImageNet are made with it:
  python evaluations/evaluator.py VIRTUAL_imagenet256_labeled.npz samples/x.npz
"""


def add_sample(command: Command) -> None:
    """The arguments of `sample`; `command(name, summary)` makes its parser."""
    sample = command("sample", "make a picture of a few images from a trained run")
    add_workdir(sample, "a trained run")
    sample.add_argument(
        "--output", type=pathlib.Path, help="PNG grid (default: WORKDIR/sample.png)"
    )
    sample.add_argument(
        "--labels", help="classes, such as 3,1,4, or none (default: eight of each, up to 10)"
    )
    sample.add_argument("--batch-size", type=int, default=64, help="images at a time")
    add_sampler(sample)
    add_quiet(sample)


def add_generate(command: Command) -> None:
    """The arguments of `generate`; `command(name, summary, epilog)` makes its parser."""
    generate = command(
        "generate", "generate many images from a trained run, on all devices", _GENERATE
    )
    add_workdir(generate, "a trained run, also one that `convert` imported")
    generate.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        help="NAME.npz: all images in one file; a folder: each as a PNG",
    )
    generate.add_argument(
        "--count", type=int, default=50_000, help="images in all (default: %(default)s)"
    )
    generate.add_argument("--labels", default="balanced", help=LABELS_HELP)
    generate.add_argument(
        "--batch-size",
        type=int,
        help="images at a time on all devices together, rounded up to a multiple of their number "
        "(default: 32 a device)",
    )
    add_sampler(generate)
    add_processes(generate)
    add_quiet(generate)


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """The seed, and the sampler's keys of the configuration."""
    parser.add_argument("--seed", type=int, default=0, help="image i depends on (seed, i) alone")
    parser.add_argument("--method", help="euler, heun or euler-maruyama (default: the config's)")
    parser.add_argument("--steps", type=int, help="integration steps (default: the config's)")
    parser.add_argument("--guidance-scale", type=float, help="0: unconditional, 1: none")
    parser.add_argument("--guidance-low", type=float, help="guide only at times t from here,")
    parser.add_argument("--guidance-high", type=float, help="to here; t runs from 1 to 0")
