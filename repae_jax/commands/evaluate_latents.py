"""The `evaluate-latents` command."""

import argparse
import pathlib

from repae_jax.commands.options import DEFAULT, add_quiet
from repae_jax.errors import UserError, advise_batch_size

SUMMARY = "compare the latent spaces of VAEs: colors, spectra, statistics"
EPILOG = """\
IMAGES and VAE are as in `evaluate-vae`; NAME=VAE gives a VAE a name in the pictures. Writes
report.html and its pictures.

example:
  evaluate-latents data/heldout before=sdvae.pt after=runs/sdvae --output latents"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("images", metavar="IMAGES", help="the images to encode")
    parser.add_argument("vaes", metavar="[NAME=]VAE", nargs="+", help="one or more")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="a folder")
    parser.add_argument("--shown", type=int, default=10, help="images in the pictures " + DEFAULT)
    parser.add_argument("--count", type=int, default=256, help="images, at most " + DEFAULT)
    parser.add_argument("--resolution", type=int, help="crop pictures to N pixels per side")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch " + DEFAULT)
    add_quiet(parser)


@advise_batch_size()
def run(options: argparse.Namespace) -> int:
    """Encode the images by each VAE, and write a report; returns 0.

    Raises:
      UserError: the options, images or VAEs are wrong.
    """
    from repae_jax.config.needs import check_nothing_missing, missing_paths, missing_vaes
    from repae_jax.evaluation.image_sets import open_images
    from repae_jax.evaluation.latent_spaces import measure_latents, write_latents_report
    from repae_jax.runs.pretrained import PretrainedVAE
    from repae_jax.utils.lock import writing_in
    from repae_jax.utils.schema import Batch, Count, check_schema

    for name, kind in (("shown", Count), ("count", Count), ("batch_size", Batch)):
        check_schema(getattr(options, name), kind, source=f"--{name.replace('_', '-')}")
    vaes = parse_vaes(options.vaes)
    missing = missing_paths({"IMAGES": options.images})
    check_nothing_missing([*missing_vaes(*vaes.values()), *missing])
    images = open_images(options.images, options.resolution)
    images = images.first(min(options.count, images.count))
    with writing_in(options.output):
        spaces = []
        for name, path in vaes.items():
            vae = PretrainedVAE.from_pretrained(path)
            progress = not options.quiet
            spaces.append(measure_latents(name, vae, images, options.batch_size, progress=progress))
        shown = next(images.batches(min(options.shown, images.count)))
        page = write_latents_report(options.output, spaces, shown, images.count)
    for space in spaces:
        print(f"{space.name}: variance {space.statistics.variance:.4g}, {space.summary}")
    print(f"report: {page}")
    return 0


def parse_vaes(words: list[str]) -> dict[str, str]:
    """Parse words "NAME=PATH" or "PATH" into {name: path}; the default name ends the path.

    Raises:
      UserError: a name or path is empty, or two VAEs have the same name.
    """
    found = {}
    for word in words:
        name, sign, path = word.partition("=")
        name, path = (name, path) if sign else (pathlib.PurePath(word).name, word)
        if not name or not path:
            raise UserError(f"{word!r} names no VAE: write NAME=VAE, or the VAE alone")
        if name in found:
            raise UserError(f"two VAEs are called {name!r}: write NAME=VAE to name them")
        found[name] = path
    return found
