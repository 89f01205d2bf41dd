"""What the command line takes: every command's arguments, and its help."""

import argparse
import os
import pathlib

from repae_jax import __version__
from repae_jax.commands.common_arguments import add_config, add_processes, add_quiet, add_workdir
from repae_jax.commands.evaluation_arguments import add_evaluation
from repae_jax.commands.sampling_arguments import add_generate, add_sample

DESCRIPTION = """\
REPA-E in JAX: train a VAE and a latent diffusion transformer together, and use them.

The shortest way to see it work, on handwritten digits and two CPU cores:

  python -m repae_jax pretrain-teacher --config configs/digits.py
  python -m repae_jax train  --config configs/digits.py --workdir runs/digits
  python -m repae_jax sample --workdir runs/digits --labels 3,1,4,1,5
  python -m repae_jax report --workdir runs/digits
"""

CONFIG_HELP = """\
Any key of the configuration can be set behind --config, for example
  --config configs/digits.py --config.run.steps=200 --config.backbone.depth=4
and a config file may take an argument behind a colon, such as its recipe:
  --config configs/digits.py:repa --config.tokenizer.weights=runs/digits
All keys and their defaults are in repae_jax/config/defaults.py.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `options.command` is the one that is asked for, or None."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m repae_jax", description=DESCRIPTION, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"repae_jax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", dest="command")

    def command(name, summary, epilog=""):
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=raw,
            allow_abbrev=False,
        )

    train = command(
        "train",
        "train a configuration in a work directory, or go on where it stopped",
        CONFIG_HELP + "\nThe work directory is the whole run: config.json, checkpoints/, "
        "tensorboard/, samples/.\nCtrl-C or SIGTERM saves and exits with status 75; the same "
        "command goes on from there.\nLearning rates, their schedules and the dtype may change.",
    )
    add_config(
        train,
        "a Python file with get_config(); a run that has begun knows its own",
        required=False,
    )
    add_workdir(train, "where the run lives; made if missing, continued if not")
    train.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="continue from the checkpoint of step N, or from the beginning (0); what was saved "
        "behind it is set aside in the work directory",
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="also trace five steps for XProf, into tensorboard/; see docs/performance.md",
    )
    add_processes(train)
    add_quiet(train)

    teacher = command(
        "pretrain-teacher",
        "train the small teacher of a configuration on its own images",
        CONFIG_HELP + "\nFor images that DINOv2 does not know. Writes the file that "
        "config.teachers.<name>.weights names.",
    )
    add_config(teacher)
    teacher.add_argument("--teacher", help="its name in config.teachers, where there are several")
    teacher.add_argument("--force", action="store_true", help="replace a file that exists")
    add_quiet(teacher)

    add_sample(command)
    add_generate(command)

    report = command("report", "measure a trained run and write its report.html")
    add_workdir(report, "a trained run")
    report.add_argument("--samples", type=int, default=1000, help="generated images to measure")
    report.add_argument("--seed", type=int, default=0, help="of the generated images")
    add_quiet(report)

    add_evaluation(command)
    _add_study(command)
    _add_prepare(command)
    _add_encode(command)
    _add_compile(command)
    _add_convert(command)
    _add_inspect(command)
    return parser


def _add_inspect(command):
    from repae_jax.interop.formats import FORMATS

    inspect = command(
        "inspect",
        "say what a file or folder holds",
        "Told by what is in it, not by its name:\n"
        + "\n".join(f"  {what}" for what in FORMATS.values())
        + "\n\nNothing in a file is executed.",
    )
    inspect.add_argument("path", metavar="PATH", help="a file, a folder, or hf://owner/name")


def _add_study(command):
    study = command(
        "study",
        "train and measure the arms of an experiment over several seeds, and compare them",
        "STUDY is a Python file like configs/study_digits.py: a configuration, arms that change\n"
        "it, seeds, and claims. What is done stays done: the same command goes on, and a changed\n"
        "study is refused where it changes a run that is there. Writes report.html, tables.md and\n"
        "results.jsonl.\n\nexamples:\n"
        "  study configs/study_digits.py --output runs/study_digits --jobs 2\n"
        "  study configs/study_digits.py --output runs/try --config.seeds=1\n"
        "  study configs/study_digits.py --output runs/study_digits --report\n"
        "  study configs/study_digits.py --output runs/again --against docs/study_digits.jsonl",
    )
    study.add_argument("config", metavar="STUDY", help="a Python file with get_config()")
    study.add_argument("--output", required=True, type=pathlib.Path, help="the study's folder")
    study.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs side by side, which share the processor's cores; figures depend on it in their "
        "last digits; on a GPU leave it at 1 (default: %(default)s)",
    )
    study.add_argument("--run", metavar="ARM:SEED", help="one run alone, as the study starts it")
    study.add_argument(
        "--prepare", action="store_true", help="only make what all runs share: teachers, the judge"
    )
    study.add_argument("--report", action="store_true", help="only compare what is done")
    study.add_argument(
        "--against",
        metavar="RESULTS",
        type=pathlib.Path,
        help="another results.jsonl: say which runs have the same figures, bit by bit; the exit "
        "status is 1 if any has not",
    )
    add_quiet(study)


def _add_prepare(command):
    prepare = command(
        "prepare",
        "pack images into shards: cropped, encoded, ready to be read at random",
        "SOURCE is a folder of class folders, tfds:NAME, hdf5:FOLDER (the original's images.h5),\n"
        "digits, or scenes:COUNT. A killed run goes on where it stopped, and ends with the same\n"
        "bytes.\n\n"
        "examples:\n"
        "  prepare ~/imagenet/train data/imagenet256/train --resolution 256 --workers 8\n"
        "  prepare tfds:imagenet2012 data/imagenet256/train --format webp --quality 95\n"
        "  prepare --verify data/imagenet256/train\n\n"
        "then train with --config.data.source=packed --config.data.path=data/imagenet256",
    )
    prepare.add_argument("source", metavar="SOURCE", nargs="?", help="where the images are")
    prepare.add_argument(
        "output", metavar="OUTPUT", nargs="?", type=pathlib.Path, help="a new folder"
    )
    prepare.add_argument(
        "--verify", metavar="FOLDER", type=pathlib.Path, help="check a packed folder"
    )
    prepare.add_argument(
        "--resolution", type=int, default=256, help="pixels along a side (default: %(default)s)"
    )
    prepare.add_argument("--format", default="raw", help="raw (default), png, webp: lossless; jpeg")
    prepare.add_argument("--quality", type=int, help="1 to 100, for jpeg, or webp with loss")
    prepare.add_argument("--split", default="train", help="of the source")
    prepare.add_argument("--path", default="", help="tfds: the data directory, if not its default")
    prepare.add_argument(
        "--per-shard", type=int, default=2048, help="images in a shard (default: %(default)s)"
    )
    prepare.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes; 0: in this one (default: %(default)s)",
    )
    prepare.add_argument("--exif", action="store_true", help="turn pictures as EXIF says")
    prepare.add_argument(
        "--on-bad-image",
        default="error",
        choices=["error", "skip"],
        help="end at a file that is no readable image, or leave it out and list it",
    )
    add_quiet(prepare)


def _add_encode(command):
    encode = command(
        "encode",
        "put a configuration's images through its VAE once, to train on the latents",
        "The configuration names the images (config.data), the VAE (config.tokenizer.weights) and\n"
        "the teachers. A killed run goes on where it stopped, and ends with the same bytes.\n\n"
        "examples:\n"
        "  encode --config configs/imagenet256_ldm_e2e_vavae.py:images --output data/e2e_vavae "
        "--teachers --dtype float16\n"
        "  encode --config mine.py:repa --config.tokenizer.weights=my-vae --output data/mine "
        "--images\n\n"
        "then train with --config.data.source=latents --config.data.path=data/mine",
    )
    add_config(encode)
    encode.add_argument("--output", required=True, type=pathlib.Path, help="a new folder")
    encode.add_argument("--split", default="train", help="of the data")
    encode.add_argument(
        "--batch-size", type=int, default=64, help="images at a time (default: %(default)s)"
    )
    encode.add_argument(
        "--per-shard", type=int, default=4096, help="images in a shard (default: %(default)s)"
    )
    encode.add_argument("--mirrored", action="store_true", help="the mirrored images as well")
    encode.add_argument("--images", action="store_true", help="keep the images, for the teachers")
    encode.add_argument(
        "--teachers", action="store_true", help="keep the teachers' tokens, which are used then"
    )
    encode.add_argument(
        "--dtype", default="float32", help="as stored; or float16, bfloat16 (default: %(default)s)"
    )
    add_processes(encode)
    add_quiet(encode)


def _add_compile(command):
    ahead = command(
        "compile",
        "compile a configuration's train step for TPUs or GPUs that are not there",
        CONFIG_HELP + "\nNeeds `pip install libtpu`, or `jax[cuda13]` for GPUs, and no TPU, GPU or "
        "weights. Prints memory,\ncollectives, work, and the time that the chip's published rates "
        "allow.\n\nexamples:\n"
        "  compile --config configs/imagenet256_repae_sdvae.py --topology v5e:4x8 "
        "--config.mesh.fsdp=8\n"
        "  compile --config configs/imagenet256_repae_sdvae.py --topology v5p:4x4x4 --sweep\n"
        "  compile --config configs/imagenet256_repae_sdvae.py --topology h200:8 "
        "--batch-per-device 32",
    )
    add_config(ahead)
    ahead.add_argument(
        "--topology",
        required=True,
        help="v4, v5e, v5p or v6e, such as v5e:16x16; h100 or h200, such as h200:8",
    )
    ahead.add_argument(
        "--batch-per-device", type=int, help="images (default: config.batch_size over all devices)"
    )
    ahead.add_argument("--sweep", action="store_true", help="find the largest batch that fits")
    ahead.add_argument("--sampler", action="store_true", help="compile sampling, too")
    ahead.add_argument(
        "--effort",
        choices=["full", "quick"],
        default="full",
        help="quick: minutes in place of tens of minutes, and a slightly larger result",
    )
    ahead.add_argument("--json", action="store_true", help="one JSON object a program")


def _add_convert(command):
    from repae_jax.interop.formats import TARGETS

    choices = "\n".join(f"  {name:<12}{what}" for name, what in TARGETS.items())
    convert = command(
        "convert",
        "bring weights from one format into another",
        "SOURCE is recognised by what is in it: a work directory, a training checkpoint of the\n"
        "original REPA-E or of REPA, a VAE under LDM's or diffusers' names, a teacher, LPIPS.\n"
        "What else a file holds is left out, and said.\n"
        "TARGET tells the format by its name, or --to does:\n" + choices + "\n\n"
        "examples:\n"
        "  convert runs/digits my-vae                     the VAE, for diffusers\n"
        "  convert runs/digits exps/digits/0001450.pt     all of it, for the original\n"
        "  convert exps/sdvae/checkpoints/0400000.pt runs/sdvae    and back, to train on\n"
        "  convert sdvae-f8d4.pt sdvae                    one VAE file, for diffusers\n\n"
        "A run takes its configuration from the checkpoint's arguments, or from --config; keys\n"
        "can be set, for example --config.tokenizer.weights=VAE where the checkpoint has none.",
    )
    convert.add_argument("source", metavar="SOURCE", help="a file, a folder, or hf://owner/name")
    convert.add_argument("target", metavar="TARGET", type=pathlib.Path, help="a new file or folder")
    convert.add_argument("--to", choices=list(TARGETS), help="where the names do not tell")
    add_config(convert, "for a run whose model has no published name", required=False)
    add_quiet(convert)
