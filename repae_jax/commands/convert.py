"""The `convert` command."""

import argparse
import pathlib

from repae_jax.commands.options import (
    DEFAULT,
    add_config,
    add_quiet,
    add_step,
    check_seed,
    read_configuration,
)
from repae_jax.interop.formats import TARGETS

_CHOICES = "\n".join(f"  {name:<22}{what}" for name, what in TARGETS.items())
SUMMARY = "convert weights or cached latents from one format to another"
EPILOG = f"""\
The format of SOURCE is detected from its content: a work directory, a training
checkpoint of the original REPA-E, of REPA, LightningDiT, DiT or fuse-dit, a VAE under
LDM's or diffusers' names, diffusers' DiT, a pipeline that this command wrote, a
teacher, LPIPS, cached latents. Other content is left out, and the output lists it.
The name of TARGET selects the format, or --to does:
{_CHOICES}

examples:
  convert runs/digits my-vae                     the VAE, for diffusers
  convert runs/digits exps/digits/0001200.pt     all of it, for the original
  convert exps/sdvae/checkpoints/0400000.pt runs/sdvae    and back, to train on
  convert sdvae-f8d4.pt sdvae                    one VAE file, for diffusers
  convert runs/digits my-digits --to pipeline    the whole generator, for diffusers
  convert my-digits runs/back                    and back, to train on
  convert runs/t2i output --to fuse-dit          a text-to-image DiT, for fuse-dit
  convert DiT-XL-2-256 runs/dit                  diffusers' DiT and its VAE, to train on
  convert imagenet_train_256 data/vavae \
      --config imagenet256_lightningdit_vavae    LightningDiT's cached latents

A run takes its configuration from the checkpoint's arguments, or from --config; keys
can be set, for example --config.tokenizer.weights=VAE if the checkpoint has no VAE."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or hf://owner/name")
    parser.add_argument("target", metavar="TARGET", type=pathlib.Path, help="a new file or folder")
    parser.add_argument(
        "--to", choices=list(TARGETS), help="the format, if TARGET's name is ambiguous"
    )
    add_step(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the samples in LightningDiT's latents " + DEFAULT
    )
    parser.add_argument(
        "--multiplier",
        type=float,
        default=1.0,
        help="data.latent_multiplier of the configuration of LightningDiT's latents " + DEFAULT,
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the weights in a pipeline " + DEFAULT,
    )
    add_config(
        parser,
        "for a run whose model has no published name, and for cached latents: their VAE",
        required=False,
    )
    add_quiet(parser)


def run(options: argparse.Namespace) -> int:
    """Convert the source to the target; prints what was written and what was left out. Returns 0.

    Raises:
      UserError: see `runs.conversion.convert`.
    """
    from repae_jax.runs.conversion import convert

    check_seed(options.seed)
    done = convert(
        options.source,
        options.target,
        options.to,
        lambda derived: read_configuration(options, derived),
        step=options.step,
        seed=options.seed,
        multiplier=options.multiplier,
        dtype=options.dtype,
        progress=not options.quiet,
    )
    print(done)
    return 0
