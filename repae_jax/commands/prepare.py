"""The `prepare` command."""

import argparse
import os
import pathlib

from repae_jax.commands.options import DEFAULT, add_quiet
from repae_jax.commands.packed import megabytes, print_skipped
from repae_jax.errors import UserError, advise_on_bad_images

SUMMARY = "pack images into shards: cropped, encoded, for fast random access"
EPILOG = """\
SOURCE is a folder of class folders, tfds:NAME, hdf5:FOLDER (the original's images.h5),
digits, or scenes:COUNT; with captions, which are packed too, captions:FOLDER (pictures with a
.txt beside each, or metadata.jsonl), tars:FOLDER (WebDataset's) or described:COUNT. A killed
command resumes where it stopped, and ends with the same bytes.

examples:
  prepare ~/imagenet/train data/imagenet256/train --resolution 256 --workers 8
  prepare tfds:imagenet2012 data/imagenet256/train --format webp --quality 95
  prepare tars:downloads/blip3o data/blip3o/train --crop bilinear --on-bad-image skip
  prepare --verify data/imagenet256/train

then train with --config.data.source=packed --config.data.path=data/imagenet256"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="the images to pack")
    parser.add_argument(
        "output", metavar="OUTPUT", nargs="?", type=pathlib.Path, help="a new folder"
    )
    parser.add_argument(
        "--verify", metavar="FOLDER", type=pathlib.Path, help="check a packed folder"
    )
    parser.add_argument("--resolution", type=int, default=256, help="pixels per side " + DEFAULT)
    parser.add_argument("--format", default="raw", help="raw (default), png, webp: lossless; jpeg")
    parser.add_argument("--quality", type=int, help="1 to 100, for jpeg or lossy webp")
    parser.add_argument("--split", default="train", help="split of the source " + DEFAULT)
    parser.add_argument("--path", default="", help="tfds: the data directory (default: its own)")
    parser.add_argument("--per-shard", type=int, default=2048, help="images per shard " + DEFAULT)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes; 0: only this one " + DEFAULT
    )
    parser.add_argument(
        "--exif", action="store_true", help="rotate images by their EXIF orientation"
    )
    parser.add_argument(
        "--crop",
        default="adm",
        choices=["adm", "bicubic", "bilinear", "lanczos"],
        help="center crop: ADM's; torchvision's with this filter; or a square, then Lanczos "
        + DEFAULT,
    )
    parser.add_argument(
        "--on-bad-image",
        default="error",
        choices=["error", "skip"],
        help="stop at a file that is no readable image, or leave it out and list it " + DEFAULT,
    )
    add_quiet(parser)


@advise_on_bad_images(
    "or leave out such images with --on-bad-image skip (an OUTPUT that is begun keeps to its "
    "files: if you remove one, delete it and begin anew)"
)
def run(options: argparse.Namespace) -> int:
    """Pack the images, or check a packed data set; returns 0.

    Raises:
      UserError: the options, source, images or output folder are wrong, or `--verify` finds damage.
    """
    if options.verify is not None:
        return _verify(options)
    if not options.source or not options.output:
        raise UserError("name SOURCE and OUTPUT, or --verify FOLDER")
    from repae_jax.data.prepare import prepare

    manifest = prepare(
        options.source,
        options.output,
        resolution=options.resolution,
        format=options.format,
        quality=options.quality,
        split=options.split,
        path=options.path,
        per_shard=options.per_shard,
        workers=options.workers,
        exif=options.exif,
        crop=options.crop,
        on_bad_image=options.on_bad_image,
        progress=not options.quiet,
    )
    print(f"{options.output}: {_summary(manifest)}")
    print_skipped(manifest)
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.source or options.output:
        raise UserError("--verify checks one folder: leave out SOURCE and OUTPUT")
    from repae_jax.data.manifest import read_manifest
    from repae_jax.data.shards import verify

    verify(options.verify, progress=not options.quiet)
    print(f"{options.verify}: intact, {_summary(read_manifest(options.verify))}")
    return 0


def _summary(manifest):
    return (
        f"{manifest['count']} records of {manifest['num_classes']} classes in "
        f"{len(manifest['shards'])} shards, {megabytes(manifest)}"
    )
