"""The `encode` command."""

import argparse
import pathlib

from repae_jax.commands.options import (
    DEFAULT,
    add_config,
    add_processes,
    add_quiet,
    join_processes,
    read_configuration,
)
from repae_jax.commands.packed import megabytes, print_skipped
from repae_jax.errors import advise_on_bad_images

SUMMARY = "encode a configuration's images by its VAE once, to train on the latents"
EPILOG = """\
The configuration names the images (config.data), the VAE (config.tokenizer.weights) and the
teachers. Of a configuration with captions the cache keeps these, too. A killed command resumes
where it stopped, and ends with the same bytes.

examples:
  encode --config imagenet256_ldm_e2e_vavae:images --output data/e2e_vavae \
--teachers --dtype float16
  encode --config mine.py:repa --config.tokenizer.weights=my-vae --output data/mine --images

then train with --config.data.source=latents --config.data.path=data/mine"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser)
    parser.add_argument("--output", required=True, type=pathlib.Path, help="a new folder")
    parser.add_argument("--split", default="train", help="split of the data " + DEFAULT)
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch " + DEFAULT)
    parser.add_argument("--per-shard", type=int, default=4096, help="images per shard " + DEFAULT)
    parser.add_argument("--mirrored", action="store_true", help="encode the mirrored images too")
    parser.add_argument("--images", action="store_true", help="keep the images, for the teachers")
    parser.add_argument(
        "--teachers",
        action="store_true",
        help="keep the teachers' tokens, which training then uses in place of the teachers",
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="keep the text encoder's states of captions, which training then uses in its place",
    )
    parser.add_argument(
        "--dtype", default="float32", help="stored type: float32, float16, bfloat16 " + DEFAULT
    )
    add_processes(parser)
    add_quiet(parser)


@advise_on_bad_images(
    "or leave out such images with --config.data.on_bad_image=skip (an --output that is begun "
    "keeps to its files: if you remove one, delete it and begin anew)"
)
def run(options: argparse.Namespace) -> int:
    """Encode the configuration's images to the output folder; returns 0.

    Raises:
      UserError: the configuration, files, data or output folder are wrong.
    """
    config = read_configuration(options)
    from repae_jax.data.manifest import read_manifest
    from repae_jax.parallel.multihost import processes
    from repae_jax.training.encode import encode

    join_processes(options)
    encode(
        config,
        options.output,
        split=options.split,
        batch_size=options.batch_size,
        per_shard=options.per_shard,
        mirrored=options.mirrored,
        images=options.images,
        teachers=options.teachers,
        text=options.text,
        dtype=options.dtype,
        progress=not options.quiet,
    )
    if processes().first:
        manifest = read_manifest(options.output)
        print(f"{options.output}: {manifest['count']} latents, {megabytes(manifest)}")
        print_skipped(manifest)
    return 0
